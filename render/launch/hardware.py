"""What this machine can render on, asked without importing torch."""

from __future__ import annotations

import os
from pathlib import Path

RANK_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    # More than a decoder's strips take: the few larger tensors are mapped, since they would leave holes.
    "MALLOC_MMAP_THRESHOLD_": str(8 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
}
"""What a rank's process is started with. One thread, since ranks share the cores between them. And glibc
keeps what is freed, where it would map a large tensor anew each time: a decoder spent a sixth of its time on
page faults. (With huge pages for large tensors two ranks are slower now, one is as fast.)"""


def gpu_count() -> int:
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def processors() -> int:
    """How many ranks this machine has room for: one on each GPU, or else on each core that we may use."""
    return gpu_count() or len(os.sched_getaffinity(0))
