"""What GPUs this machine has, asked without importing torch."""

from __future__ import annotations

import subprocess
from pathlib import Path


def gpu_count() -> int:
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def smallest_vram_bytes() -> int | None:
    """The memory of the smallest GPU, by the driver's own tool; None when it does not tell."""
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
        return min(int(line) for line in answer.split()) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
