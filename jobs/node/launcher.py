"""torchrun that dies with its parent: `python -m jobs.node.launcher PARENT_PID RANKS DESK ARGUMENTS...`.

RANKS and DESK are for the ranks that it starts early, ARGUMENTS are torchrun's, without a program.

A process of its own rather than a hook between fork and exec, which is not safe beside other threads.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

from jobs.node.early import start_early
from render.lifeline import PARENT, die_with_parent

MATES_LOST = 75
"""Exit code of a rank, and then of torchrun, that ends because ranks of other nodes are gone."""


def main() -> int:
    """Tie this process to its parent, then be torchrun; `MATES_LOST` when nothing is wrong on this node."""
    die_with_parent(int(sys.argv[1]))
    os.environ[PARENT] = str(os.getpid())
    ranks, desk = int(sys.argv[2]), sys.argv[3]
    start_early(ranks, Path(desk))
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.run import main as torchrun

    try:
        torchrun([*sys.argv[4:], "--nproc-per-node", str(ranks), "-m", "jobs.node.early", desk])
    except ChildFailedError as exc:
        traceback.print_exc()
        # A rank that crashed takes the others of its node along; then it is this node that failed.
        codes = {failure.exitcode for failure in exc.failures.values()}
        return MATES_LOST if codes == {MATES_LOST} else 1
    except (DistError, RendezvousError):
        traceback.print_exc()
        return MATES_LOST
    return 0


if __name__ == "__main__":
    sys.exit(main())
