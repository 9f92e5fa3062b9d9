"""Checks that what a network answers with are numbers. A NaN spreads to all that is computed from it."""

from __future__ import annotations

import torch
from torch import Tensor

from render.errors import NotFinite

_FIXES = {
    "float16": "try --dtype bfloat16, or float32",
    "bfloat16": "try --dtype float32",
    "float32": "the weights are damaged, or a LoRA or the guidance scale is too strong",
}


def check_prediction(predictions: Tensor, step: int, stage: int, dtype: str) -> None:
    """Raise `NotFinite` for a prediction that a network gave in `dtype` with infinities or NaN in it."""
    if not bool(torch.isfinite(predictions).all()):
        raise NotFinite(
            f"the model answered with numbers that are not finite at step {step} of stage {stage}, in {dtype}"
            f"; {_FIXES[dtype]}"
        )


def check_autoencoder(values: Tensor, what: str) -> None:
    """The same for pixels or latents of the autoencoder; `what` says when, as in `when it decoded it`."""
    if not bool(torch.isfinite(values).all()):
        raise NotFinite(
            f"the autoencoder answered with numbers that are not finite {what}; try --dtype float32, or "
            "another --vae"
        )
