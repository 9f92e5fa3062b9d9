"""The Muon optimizer (Jordan et al. 2024) for matrices, in a precision of choice.

`torch.optim.Muon` orthogonalizes one matrix at a time in bfloat16, which is slow on a CPU without such
instructions. Here all matrices of one shape are one batch, in float32 where bfloat16 is not asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Momentum whose steps are orthogonalized, scaled to the size of AdamW's (Liu et al. 2025)."""

    def __init__(
        self,
        matrices: Iterable[Tensor],
        lr: float,
        momentum: float = 0.95,
        decay: float = 0.01,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """`dtype` is that of the orthogonalization."""
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": decay})
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step from the gradients; `closure` is not supported."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            for weight in weights:
                if "momentum" not in self.state[weight]:
                    self.state[weight]["momentum"] = torch.zeros_like(weight)
            momenta = [self.state[weight]["momentum"] for weight in weights]
            gradients = [weight.grad for weight in weights]
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            updates = torch._foreach_lerp(gradients, momenta, group["momentum"])  # Nesterov's
            shapes: dict[torch.Size, list[int]] = {}
            for number, weight in enumerate(weights):
                shapes.setdefault(weight.shape, []).append(number)
            for shape, numbers in shapes.items():
                steps = orthogonalized(torch.stack([updates[number] for number in numbers]), self._dtype)
                rate = group["lr"] * 0.2 * max(shape) ** 0.5
                for number, step in zip(numbers, steps, strict=True):
                    weights[number].mul_(1 - group["lr"] * group["weight_decay"]).add_(step, alpha=-rate)


def orthogonalized(matrices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """[N, rows, columns] with all singular values near one, by Newton and Schulz' iteration."""
    found = matrices.to(dtype)
    tall = found.shape[1] > found.shape[2]
    if tall:
        found = found.transpose(1, 2)
    found = found / (found.norm(dim=(1, 2), keepdim=True) + 1e-7)
    first, second, third = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = found @ found.transpose(1, 2)
        found = first * found + (second * gram + third * gram @ gram) @ found
    return (found.transpose(1, 2) if tall else found).to(matrices.dtype)
