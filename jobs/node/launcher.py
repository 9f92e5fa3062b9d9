"""torchrun that dies with its parent: `python -m jobs.node.launcher PARENT_PID TORCHRUN_ARGUMENTS...`.

A process of its own rather than a hook between fork and exec, which is not safe beside other threads.
"""

from __future__ import annotations

import os
import sys

from render.lifeline import PARENT, die_with_parent


def main() -> None:
    """Tie this process to its parent, then be torchrun."""
    die_with_parent(int(sys.argv[1]))
    os.environ[PARENT] = str(os.getpid())
    from torch.distributed.run import main as torchrun

    torchrun(sys.argv[2:])


if __name__ == "__main__":
    main()
