"""torchrun that dies with its parent: `python -m render.launch.launcher PARENT RANKS DIRECTORY`.

PARENT is a pid, RANKS the number of ranks on this node, and DIRECTORY the group's, with the rendezvous in a
file.

A process of its own rather than a hook between fork and exec, which is not safe beside other threads.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from pathlib import Path

from render.launch.fork_server import start_fork_server
from render.launch.group_directory import rendezvous_path
from render.launch.parent_death import PARENT, die_with_parent
from render.launch.rank_environment import PEERS_LOST
from render.launch.rendezvous_config import Rendezvous
from render.launch.shared_memory import bus_error


def main() -> int:
    """Tie this process to its parent, then be torchrun; `PEERS_LOST` when nothing is wrong on this node."""
    die_with_parent(int(sys.argv[1]))
    os.environ[PARENT] = str(os.getpid())
    ranks, directory = int(sys.argv[2]), sys.argv[3]
    server = start_fork_server(Path(directory))
    rendezvous = Rendezvous.take(rendezvous_path(Path(directory)))
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.run import main as torchrun

    from render.launch.rendezvous import Misconfigured, NotAdmitted, register

    register(rendezvous, Path(directory))
    program = ["-m", "render.launch.fork_client", directory]
    try:
        # torchrun keeps a folder for logs, which only goes with the directory of the group.
        logs = ["--log-dir", str(Path(directory) / "torchrun")]
        torchrun([*rendezvous.arguments(), *logs, "--nproc-per-node", str(ranks), *program])
    except ChildFailedError as exc:
        traceback.print_exc()
        # A rank that crashed takes the others of its node along; then it is this node that failed.
        codes = {failure.exitcode for failure in exc.failures.values()}
        if -signal.SIGBUS in codes:
            sys.stderr.write(f"{bus_error()}\n")
        return PEERS_LOST if codes == {PEERS_LOST} else 1
    except Misconfigured as exc:
        sys.stderr.write(f"{exc}\n")
        return 1
    except NotAdmitted as exc:
        sys.stderr.write(f"{exc}\n")
        return PEERS_LOST
    except (DistError, RendezvousError):
        traceback.print_exc()
        return PEERS_LOST
    finally:
        server.kill()
        server.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
