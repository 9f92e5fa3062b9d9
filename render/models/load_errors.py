"""What libraries raise for a file that does not load, told apart from a lack of memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from safetensors import SafetensorError

from render.errors import BadInput, first_line
from render.memory import lacks_memory

LOAD_ERRORS = (
    OSError,
    ValueError,
    RuntimeError,
    LookupError,
    TypeError,
    AttributeError,
    ImportError,
    AssertionError,
    SafetensorError,
)
"""What libraries raise for a folder or a file that does not load."""


@contextmanager
def load_errors(refuse: Callable[[str], BadInput], most: int | None = 160) -> Iterator[None]:
    """Raise `refuse(reason)` for what a library raises; `reason` is the first line of its text, of at most
    `most` characters.

    A file is not damaged because there was no memory for it: that is raised as `torch.OutOfMemoryError`,
    whoever has noticed it. Errors of ours pass unchanged.
    """
    try:
        yield
    except (*LOAD_ERRORS, MemoryError) as exc:
        if isinstance(exc, torch.OutOfMemoryError):
            raise
        if lacks_memory(exc):
            raise torch.OutOfMemoryError(first_line(exc, most)) from exc
        raise refuse(first_line(exc, most)) from exc
