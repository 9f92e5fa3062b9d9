"""What the trainings share: the parts on disk, the moving average, the saved state, the log."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


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
        """`count` rows of one size; sizes are drawn as often as they have rows."""
        sizes = list(self.groups)
        rows = np.array([len(self.groups[size]["place"]) for size in sizes], float)
        group = self.groups[sizes[int(draw.choice(len(sizes), p=rows / rows.sum()))]]
        chosen = draw.integers(len(group["place"]), size=count)
        return {name: values[chosen] for name, values in group.items()}


class Average:
    """Exponential moving average of a model's weights."""

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        self.decay, self._seen = decay, 0
        self.weights = {name: value.detach().clone() for name, value in model.state_dict().items()}

    def update(self, model: torch.nn.Module) -> None:
        self._seen += 1
        decay = min(self.decay, (1 + self._seen) / (10 + self._seen))
        with torch.no_grad():
            for name, value in model.state_dict().items():
                if value.dtype.is_floating_point:
                    self.weights[name].lerp_(value, 1 - decay)

    def load(self, weights: dict[str, torch.Tensor]) -> None:
        self.weights = {name: value.clone() for name, value in weights.items()}
        self._seen = 10_000


def save_state(
    path: Path,
    model: torch.nn.Module,
    average: Average,
    optimiser: torch.optim.Optimizer,
    step: int,
    spent: float,
) -> None:
    """Write the training's state whole or not at all."""
    state = {
        "model": model.state_dict(),
        "average": average.weights,
        "optimiser": optimiser.state_dict(),
        "step": step,
        "spent": spent,
    }
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").rename(path)


def log_line(path: Path, line: str) -> None:
    """Append to the log: stage, step, seconds, loss, figure."""
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
