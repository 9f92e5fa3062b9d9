"""/dev/shm: where NCCL connects the GPUs of one machine. Containers have 64 MiB of it by default."""

from __future__ import annotations

import os

SHARED_MEMORY = "/dev/shm"
SHARED_MEMORY_BYTES = 1 << 30
"""What eight GPUs of one machine are content with, by NVIDIA's advice for containers."""
MORE_SHARED_MEMORY = "mount an emptyDir of medium Memory there, or docker run --shm-size=1g"


def shared_memory_bytes() -> int | None:
    """Size of /dev/shm in bytes, None where there is none."""
    try:
        found = os.statvfs(SHARED_MEMORY)
    except OSError:
        return None
    return found.f_blocks * found.f_frsize


def bus_error() -> str:
    """What to say of a rank that SIGBUS has ended: a page of shared memory that is not to be had."""
    total = shared_memory_bytes()
    has = "is missing" if total is None else f"has {total >> 20} MiB"
    return f"a rank ended with a bus error (SIGBUS): {SHARED_MEMORY} {has} and is full; {MORE_SHARED_MEMORY}"
