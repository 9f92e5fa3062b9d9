"""Where a rank keeps the activations of its tiles: in memory as far as a budget goes, beyond it in files."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch
from torch import Tensor

_CPU_BUDGET = 1 << 30
_GPU_SHARE = 4
"""A rank keeps at most a gigabyte of activations in a CPU's memory, or a quarter of what its GPU has free."""


def default_budget(device: torch.device) -> int:
    """Bytes of activations that a rank keeps in memory."""
    if device.type != "cuda":
        return _CPU_BUDGET
    free, _ = torch.cuda.mem_get_info(device)
    return int(free) // _GPU_SHARE


class TileStore:
    """Keeps tensors; which of them lie in files changes no bit. Used as a context manager."""

    def __init__(self, device: torch.device, budget: int | None = None) -> None:
        """`budget` is in bytes; files are in the folder for temporary files (`TMPDIR`)."""
        self.device = device
        self.budget = default_budget(device) if budget is None else budget
        self.used = 0
        """Bytes in memory now."""
        self.spilled = 0
        """Bytes that were ever written to files."""
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._files = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def keep(self, values: Tensor) -> Kept:
        """Keep a tensor until `Kept.drop`; raises `OSError` when it goes to a file and the disk is full."""
        values = values.contiguous()
        if self.used + values.nbytes <= self.budget:
            self.used += values.nbytes
            return Kept(self, values, None)
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="chorale-tiles-")
        self._files += 1
        self.spilled += values.nbytes
        path = Path(self._folder.name) / str(self._files)
        values.cpu().flatten().view(torch.uint8).numpy().tofile(path)
        return Kept(self, values.new_empty(0), path, values.shape)


class Kept:
    """One tensor in a `TileStore`."""

    def __init__(
        self, store: TileStore, values: Tensor, path: Path | None, shape: torch.Size | None = None
    ) -> None:
        self._store, self._values, self._path, self._shape = store, values, path, shape

    def read(self) -> Tensor:
        """The tensor, on the store's device. It is not to be written to."""
        if self._path is None:
            return self._values
        assert self._shape is not None
        data = torch.from_numpy(np.fromfile(self._path, np.uint8))
        return data.view(self._values.dtype).view(self._shape).to(self._store.device)

    def drop(self) -> None:
        """Free its memory or its file."""
        if self._path is None:
            self._store.used -= self._values.nbytes
            self._values = self._values.new_empty(0)
        else:
            self._path.unlink(missing_ok=True)
