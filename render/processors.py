"""What this machine can render on, asked without importing torch."""

from __future__ import annotations

import os
from pathlib import Path

RANK_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "THP_MEM_ALLOC_ENABLE": "1"}
"""What a rank's process is started with: one thread, since ranks share the cores between them; and torch
takes its memory in huge pages, since a decoder spends a sixth of its time on faults of small ones."""


def gpu_count() -> int:
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def processors() -> int:
    """How many ranks this machine has room for: one on each GPU, or else on each core that we may use."""
    return gpu_count() or len(os.sched_getaffinity(0))
