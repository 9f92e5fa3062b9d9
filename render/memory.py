"""Lack of memory, by whoever has noticed it: torch on a GPU or a CPU, Python, or the system."""

from __future__ import annotations

import errno

import torch

_TEXTS = ("out of memory", "can't allocate memory", "cannot allocate memory", "alloc_failed")
"""Of errors that have no class of their own: of CUDA's driver and libraries, of torch's allocator for the CPU
("DefaultCPUAllocator: can't allocate memory"), of a file that cannot be mapped ("os error 12")."""


def lacks_memory(exc: BaseException) -> bool:
    """Whether an error, or one that it follows from, tells that there was not enough memory."""
    found: BaseException | None = exc
    seen: set[int] = set()
    while found is not None and id(found) not in seen:
        if _tells(found):
            return True
        seen.add(id(found))
        found = found.__cause__ or found.__context__
    return False


def _tells(exc: BaseException) -> bool:
    if isinstance(exc, (torch.OutOfMemoryError, MemoryError)):
        return True
    if isinstance(exc, OSError) and exc.errno is not None:
        return exc.errno == errno.ENOMEM
    text = str(exc).lower()
    return any(part in text for part in _TEXTS)
