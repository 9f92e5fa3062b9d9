"""The NVIDIA GPUs that this process may use, as NVML reports them. No torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pynvml

VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU. `selector` is what `CUDA_VISIBLE_DEVICES` takes for it: an index or a UUID."""

    selector: str
    handle: Any


def visible_gpus() -> tuple[Gpu, ...]:
    """The GPUs of `CUDA_VISIBLE_DEVICES` in its order, else all in the driver's; empty without a driver.

    This is the order of a node's slots. As in CUDA, the first entry that names no GPU hides those after it.
    """
    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
        selectors = os.environ.get(VISIBLE)
        chosen = map(str, range(count)) if selectors is None else selectors.split(",")
        found = []
        for selector in (each.strip() for each in chosen):
            handle = _handle(selector, count)
            if handle is None:
                break
            found.append(Gpu(selector=selector, handle=handle))
        return tuple(found)
    except pynvml.NVMLError:
        return ()


def processors() -> int:
    """The number of ranks that this machine has room for: one per visible GPU, or per usable CPU core."""
    return len(visible_gpus()) or len(os.sched_getaffinity(0))


def gpu_names() -> list[str]:
    """The names of the visible GPUs; empty without a driver."""
    try:
        return [str(pynvml.nvmlDeviceGetName(gpu.handle)) for gpu in visible_gpus()]
    except pynvml.NVMLError:
        return []


def local_bfloat16(device: str = "auto") -> bool | None:
    """Whether all visible GPUs compute in bfloat16 (NVIDIA's since Ampere, 8.0).

    None without a GPU, or where `device`, a flag's value, is cpu.
    """
    gpus = visible_gpus()
    if not gpus or device == "cpu":
        return None
    try:
        return all(pynvml.nvmlDeviceGetCudaComputeCapability(gpu.handle)[0] >= 8 for gpu in gpus)
    except pynvml.NVMLError:
        return False


def smallest_memory_bytes() -> int | None:
    """Memory of the smallest visible GPU in bytes; None where it is not reported."""
    try:
        return min(int(pynvml.nvmlDeviceGetMemoryInfo(gpu.handle).total) for gpu in visible_gpus())
    except (pynvml.NVMLError, ValueError):
        return None


def read_gpus() -> Iterator[tuple[str, int, float]]:
    """(metric, slot, value) of the visible GPUs; values that a device does not report are left out."""
    for slot, gpu in enumerate(visible_gpus()):
        try:
            memory = pynvml.nvmlDeviceGetMemoryInfo(gpu.handle)
            yield "chorale_vram_used_bytes", slot, float(memory.used)
            yield "chorale_vram_total_bytes", slot, float(memory.total)
            busy = pynvml.nvmlDeviceGetUtilizationRates(gpu.handle).gpu
            yield "chorale_gpu_utilization_ratio", slot, busy / 100
        except pynvml.NVMLError:
            # A partitioned device reports no utilization; one that fell off the bus reports nothing.
            continue


def driver_version() -> str | None:
    """The driver's version, None where there is no driver."""
    try:
        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError:
        return None


def _handle(selector: str, count: int) -> Any | None:
    if selector.isascii() and selector.isdigit():
        number = int(selector)
        return pynvml.nvmlDeviceGetHandleByIndex(number) if number < count else None
    if selector.startswith("MIG-"):
        return pynvml.nvmlDeviceGetHandleByUUID(selector)
    if not selector.startswith("GPU-"):
        return None
    # CUDA takes the beginning of a UUID, too.
    handles = (pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(count))
    return next((each for each in handles if str(pynvml.nvmlDeviceGetUUID(each)).startswith(selector)), None)
