"""What a rank's tensors take of its device."""

from __future__ import annotations

import torch


def device_memory(device: torch.device) -> dict[str, int]:
    """Bytes that are `allocated` to tensors, `reserved` by the allocator, and the `peak` of the former.

    Empty on a CPU, where torch does not count.
    """
    if device.type != "cuda":
        return {}
    return {
        "allocated": torch.cuda.memory_allocated(device),
        "reserved": torch.cuda.memory_reserved(device),
        "peak": torch.cuda.max_memory_allocated(device),
    }
