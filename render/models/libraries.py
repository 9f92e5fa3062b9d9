"""Imports diffusers and transformers without what is not needed of them. No torch until it is called."""

from __future__ import annotations

import sys

_HIDDEN = ("torchao", "onnxruntime")
"""What they import for loaders that are not used here (`render.models.quantization` calls torchao itself). It
takes seconds and prints warnings, and onnxruntime leaves a file in the temporary folder."""


def import_libraries() -> None:
    """Import both as if `_HIDDEN` were not installed, unless one of them is imported already."""
    if "diffusers" in sys.modules or "transformers" in sys.modules:
        return
    hidden = [name for name in _HIDDEN if name not in sys.modules]
    for name in hidden:
        # None stands for "cannot be imported", see the documentation of `sys.modules`.
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        import diffusers
        import transformers

        # The first access imports the modules that look for it.
        _ = diffusers.ModelMixin, transformers.PreTrainedModel
    finally:
        for name in hidden:
            del sys.modules[name]
