"""Imports diffusers and transformers without what is not needed of them. No torch until it is called."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from render.models.late_imports import import_late

_HIDDEN = ("torchao", "onnxruntime")
"""What they import for loaders that are not used here (`render.models.quantization` calls torchao itself). It
takes seconds and prints warnings, and onnxruntime leaves a file in the temporary folder."""
_OF_LOSSES = ("scipy",)
"""What transformers imports for losses of training."""


def import_libraries() -> None:
    """Import both as if `_HIDDEN` were not installed, unless one of them is imported already.

    What diffusers needs for LoRA and for few schedules alone is imported when it is used (`late_imports`).
    """
    if "diffusers" in sys.modules or "transformers" in sys.modules:
        return
    import_late()
    with _hidden(_HIDDEN):
        import diffusers

        with _hidden(_OF_LOSSES):
            import transformers

            # The first access imports the modules that look for it.
            _ = transformers.PreTrainedModel
        _ = diffusers.ModelMixin


@contextmanager
def _hidden(names: tuple[str, ...]) -> Iterator[None]:
    """While it is open, packages that are not imported yet cannot be."""
    hidden = [name for name in names if name not in sys.modules]
    for name in hidden:
        # None stands for "cannot be imported", see the documentation of `sys.modules`.
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
