"""Imports diffusers and transformers without what is not needed of them. No torch until it is called."""

from __future__ import annotations

import sys


def import_libraries() -> None:
    """Import both as if torchao were not installed, unless one of them is imported already.

    They import it for loaders that are not used here (`render.models.quantization` calls torchao itself),
    which takes two seconds and prints what is no news.
    """
    if "diffusers" in sys.modules or "transformers" in sys.modules or "torchao" in sys.modules:
        return
    # None stands for "cannot be imported", see the documentation of `sys.modules`.
    sys.modules["torchao"] = None  # type: ignore[assignment]
    try:
        import diffusers
        import transformers

        # The first access imports the modules that look for it.
        _ = diffusers.ModelMixin, transformers.PreTrainedModel
    finally:
        del sys.modules["torchao"]
