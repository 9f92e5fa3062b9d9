"""What the NVIDIA driver reports of this machine's GPUs; nothing where there is none."""

from __future__ import annotations

from collections.abc import Iterator

import pynvml


class Gpus:
    """The GPUs in the driver's order, which is that of the node's slots. NVML is opened at the first read."""

    def __init__(self) -> None:
        self._handles: list[object] | None = None

    def read(self) -> Iterator[tuple[str, int, float]]:
        """(series name, GPU number, value); values that a device does not report are left out."""
        for number, handle in enumerate(self._opened()):
            try:
                memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
                yield "chorale_vram_used_bytes", number, float(memory.used)
                yield "chorale_vram_total_bytes", number, float(memory.total)
                busy = pynvml.nvmlDeviceGetUtilizationRates(handle).gpu
                yield "chorale_gpu_utilization_ratio", number, busy / 100
            except pynvml.NVMLError:
                # A partitioned device reports no utilization; one that fell off the bus reports nothing.
                continue

    def _opened(self) -> list[object]:
        if self._handles is None:
            try:
                pynvml.nvmlInit()
                count = pynvml.nvmlDeviceGetCount()
                self._handles = [pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(count)]
            except pynvml.NVMLError:
                self._handles = []
        return self._handles


def gpu_names() -> list[str]:
    """The names of all GPUs in the driver's order; empty without a driver."""
    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
        return [str(pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(n))) for n in range(count)]
    except pynvml.NVMLError:
        return []


def driver_version() -> str | None:
    """The driver's version, None where there is no driver."""
    try:
        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError:
        return None
