"""Shared by the training commands: the data on disk, the moving average, the saved state, the log."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

SAVE_EVERY_S = 120
LOG_EVERY = 100
"""Steps that a line of the log averages over."""


class Parts:
    """The drawn photographs of some window sizes, in memory."""

    def __init__(self, folder: Path, sizes: list[tuple[int, int]] | None = None) -> None:
        found: dict[tuple[int, int], list[dict[str, NDArray[Any]]]] = {}
        for path in sorted(folder.glob("part*.npz")):
            match = re.search(r"_(\d+)x(\d+)", path.name)
            assert match, f"{path.name} is not a part"
            size = int(match[1]), int(match[2])
            if sizes is None or size in sizes:
                with np.load(path) as file:
                    found.setdefault(size, []).append({name: file[name] for name in file.files})
        self.groups: dict[tuple[int, int], dict[str, NDArray[Any]]] = {
            size: {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            for size, parts in found.items()
        }

    def batch(self, draw: np.random.Generator, count: int) -> dict[str, NDArray[Any]]:
        """`count` rows of one size; sizes are drawn in proportion to their rows."""
        sizes = list(self.groups)
        rows = np.array([len(self.groups[size]["place"]) for size in sizes], float)
        group = self.groups[sizes[int(draw.choice(len(sizes), p=rows / rows.sum()))]]
        chosen = draw.integers(len(group["place"]), size=count)
        return {name: values[chosen] for name, values in group.items()}


class Average:
    """Exponential moving average of a model's weights."""

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        self.decay, self._updates = decay, 0
        self.weights = {name: value.detach().clone() for name, value in model.state_dict().items()}

    def update(self, model: torch.nn.Module) -> None:
        self._updates += 1
        decay = min(self.decay, (1 + self._updates) / (10 + self._updates))
        state = model.state_dict()
        names = [name for name, value in state.items() if value.dtype.is_floating_point]
        with torch.no_grad():
            # One call for all tensors: a loop over hundreds of small ones costs more than its arithmetic.
            torch._foreach_lerp_(
                [self.weights[name] for name in names], [state[name] for name in names], 1 - decay
            )

    def load(self, weights: dict[str, torch.Tensor], updates: int = 10_000) -> None:
        """Go on from these, which are the average of so many updates."""
        self.weights = {name: value.clone() for name, value in weights.items()}
        self._updates = updates


class Training:
    """A resumable run of optimizer steps: rate, moving average, state on disk, log.

    Iterating yields one random generator per step, so that a resumed run draws the same numbers as an
    uninterrupted one; the loop's body computes the loss and passes it to `descend`.
    """

    def __init__(
        self, stage: str, model: torch.nn.Module, path: Path, *, steps: int, rate: float, decay: float
    ) -> None:
        self.model, self.path, self.steps, self.rate = model, path, steps, rate
        self.average = Average(model, decay)
        self.step = 0
        self._stage = stage
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        self._optimizer = torch.optim.AdamW(
            trained, lr=rate, betas=(0.9, 0.99), weight_decay=1e-3, fused=True
        )
        self._spent, self._started = 0.0, time.monotonic()
        self._recent: list[tuple[float, float]] = []
        if path.exists():
            saved = torch.load(path, weights_only=True)
            model.load_state_dict(saved["model"])
            self.average.load(saved["average"])
            self._optimizer.load_state_dict(saved["optimiser"])
            self.step, self._spent = saved["step"], saved["spent"]

    def __iter__(self) -> Iterator[np.random.Generator]:
        saved_at = time.monotonic()
        while self.step < self.steps:
            torch.manual_seed(self.step)
            yield np.random.default_rng(self.step)
            self.step += 1
            if time.monotonic() - saved_at > SAVE_EVERY_S:
                saved_at = time.monotonic()
                self.save()
        self.save()

    def descend(self, loss: torch.Tensor, figure: float = float("nan")) -> None:
        """One optimizer step; the rate rises over 200 steps, stays, and falls over the last 55 %."""
        remaining = 1 - self.step / self.steps
        for group in self._optimizer.param_groups:
            group["lr"] = self.rate * min(1, (self.step + 1) / 200) * max(0.01, min(1.0, remaining / 0.55))
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()
        self.average.update(self.model)
        self._recent.append((float(loss.detach()), figure))
        if len(self._recent) == LOG_EVERY:
            mean_loss, mean_figure = np.mean(self._recent, axis=0)
            with self.path.with_suffix(".csv").open("a", encoding="utf-8") as file:
                file.write(
                    f"{self._stage},{self.step + 1},{self.seconds:.0f},{mean_loss:.5f},{mean_figure:.2f}\n"
                )
            self._recent = []

    @property
    def seconds(self) -> float:
        """Seconds spent, including those before a resume."""
        return self._spent + time.monotonic() - self._started

    def save(self) -> None:
        """Write the state atomically."""
        state = {
            "model": self.model.state_dict(),
            "average": self.average.weights,
            "optimiser": self._optimizer.state_dict(),
            "step": self.step,
            "spent": self.seconds,
        }
        torch.save(state, self.path.with_suffix(".tmp"))
        self.path.with_suffix(".tmp").rename(self.path)
