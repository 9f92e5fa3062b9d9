"""torchrun on this machine alone, by our own rendezvous: `python -m render.launch.torchrun RANKS ...`.

For programs that form their own group, such as benchmarks. torchrun's `--standalone` would listen on all
interfaces and keep a pickle in its store.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from render.launch.rendezvous_config import Rendezvous


def main() -> None:
    """Run torchrun with the arguments behind the number of ranks."""
    from torch.distributed.run import main as torchrun

    from render.launch.rendezvous import register

    ranks, *arguments = sys.argv[1:]
    rendezvous = Rendezvous()
    os.environ.update(rendezvous.environment())
    register(rendezvous, Path(tempfile.gettempdir()))
    torchrun([*rendezvous.arguments(), "--nproc-per-node", ranks, *arguments])


if __name__ == "__main__":
    main()
