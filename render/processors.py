"""What this machine can render on, asked without importing torch."""

from __future__ import annotations

import os
from pathlib import Path


def gpu_count() -> int:
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def processors() -> int:
    """How many ranks this machine has room for: one on each GPU, or else on each core that we may use."""
    return gpu_count() or len(os.sched_getaffinity(0))
