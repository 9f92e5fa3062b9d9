"""Cross-window attention that was trained: a small module beside a UNet, for models that bring one.

A window's token is what it pools in the UNet's middle and where it lies; so tokens can cross as they are, and
whoever hears them knows from where. Each cell of a window asks with what it holds and where it is, and what
it hears is added to what the layer answers. The form without training is `render.models.cross_window_attention`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from render.errors import ModelNotUsable
from render.models.adapter import WindowPlace
from render.models.cross_window_attention import BatchContext
from render.models.folder import LISTENER

_OCTAVES = 4
FEATURES = 4 * _OCTAVES + 2
"""Numbers that say where something lies in its picture."""
_CONFIG, _WEIGHTS = "config.json", "model.safetensors"


class TrainedCrossWindowAttention(nn.Module):
    """What windows say of themselves and make of the others. It adds nothing until it is trained."""

    def __init__(self, channels: int, heads: int) -> None:
        """`channels` of the layer that it stands beside."""
        super().__init__()
        self.channels, self.heads = channels, heads
        self.say, self.ask, self.key, self.value, self.out = (nn.Linear(channels, channels) for _ in range(5))
        self.say_place, self.ask_place = (nn.Linear(FEATURES, channels) for _ in range(2))
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def tokens(self, states: Tensor, places: Sequence[WindowPlace]) -> Tensor:
        """[B, cells, channels] of B windows -> [B, channels], one token each.

        A product of a few rows rounds a row by its number, and ranks number their windows otherwise: so all
        cells are projected, as the UNet projects them, and places are summed up one by one.
        """
        where = torch.tensor([_features(place, 1, 1)[0] for place in places]).to(states)
        placed = (where[:, None] * self.say_place.weight).sum(2) + self.say_place.bias
        said: Tensor = self.say(states).mean(1) + placed
        return said

    def heard(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """[P, N, channels] tokens -> keys and values, [P, heads, N, channels per head], the same for all who
        hear them."""
        return self._heads(self.key(tokens)), self._heads(self.value(tokens))

    def forward(self, states: Tensor, places: Sequence[WindowPlace], keys: Tensor, values: Tensor) -> Tensor:
        """[B, cells, channels] of B windows, and keys and values [B, heads, N, channels per head] that each
        hears -> what is added to the cells."""
        where = torch.tensor([_features(place, *_cells(place, states.shape[1])) for place in places])
        asked = self._heads(self.ask(states + self.ask_place(where.to(states))))
        answer = functional.scaled_dot_product_attention(asked, keys, values)
        added: Tensor = self.out(answer.transpose(1, 2).flatten(2))
        return added

    def _heads(self, states: Tensor) -> Tensor:
        """[B, tokens, channels] -> [B, heads, tokens, channels per head]"""
        return states.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def save(self, folder: Path) -> None:
        """Write it into a model's folder, in half precision."""
        target = folder / LISTENER
        target.mkdir(exist_ok=True)
        config = {"channels": self.channels, "heads": self.heads}
        (target / _CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        weights = {name: value.half().cpu().contiguous() for name, value in self.state_dict().items()}
        save_file(weights, target / _WEIGHTS)
        (target / _WEIGHTS).chmod(0o644)


def load_trained_attention(
    folder: Path, device: torch.device, dtype: torch.dtype
) -> TrainedCrossWindowAttention:
    """The one of a model's folder; raises `ModelNotUsable` when it does not load."""
    try:
        config = json.loads((folder / LISTENER / _CONFIG).read_text())
        listener = TrainedCrossWindowAttention(config["channels"], config["heads"])
        listener.load_state_dict(load_file(folder / LISTENER / _WEIGHTS))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AssertionError, SafetensorError) as exc:
        reason = (str(exc).strip().splitlines() or [type(exc).__name__])[0]
        raise ModelNotUsable(
            "model", str(folder), f"has a {LISTENER} that does not load ({reason}); download it again"
        ) from exc
    return listener.to(device, dtype).eval()


@dataclass(frozen=True, kw_only=True)
class TrainedContext:
    """What windows hear at a step."""

    listener: TrainedCrossWindowAttention
    share: float
    said: tuple[Tensor, Tensor] | None
    """Keys and values, [passes, heads, N, channels per head]; None where nothing is heard."""

    @classmethod
    def of(cls, listener: TrainedCrossWindowAttention, tokens: Tensor | None, share: float) -> TrainedContext:
        """From [passes, N, channels] tokens, as the windows have said them."""
        if tokens is None or share == 0.0:
            return cls(listener=listener, share=0.0, said=None)
        return cls(listener=listener, share=share, said=listener.heard(tokens.to(listener.say.weight)))

    def ear(self, plain: Any, layer: int, audience: BatchContext) -> Any:
        """See `render.models.cross_window_attention.Context`; a listener stands beside the first chosen layer."""
        return plain if layer else _Ear(plain, self, audience)


class _Ear:
    """A diffusers attention processor: the layer's own attention, and the listener beside it."""

    def __init__(self, plain: Any, heard: TrainedContext, audience: BatchContext) -> None:
        self._plain, self._heard, self._audience = plain, heard, audience

    def __call__(self, attention: Any, hidden_states: Tensor, *others: Any, **more: Any) -> Tensor:
        listener, said, audience = self._heard.listener, self._heard.said, self._audience
        audience.said.append(listener.tokens(hidden_states, audience.places).float())
        plain: Tensor = self._plain(attention, hidden_states, *others, **more)
        if said is None:
            return plain
        keys, values = (part[list(audience.passes)] for part in said)
        heard: Tensor = listener(hidden_states, audience.places, keys, values)
        return plain + heard * self._heard.share


def _cells(place: WindowPlace, count: int) -> tuple[int, int]:
    """Rows and columns of the cells that a window has in the layer."""
    rows = max(1, round(math.sqrt(count * place.height / place.width)))
    return rows, count // rows


def _features(place: WindowPlace, rows: int, cols: int) -> list[list[float]]:
    """[rows * cols, FEATURES]: the middle of each cell as waves over the picture, and the window's extent."""
    extent = (
        math.log2(place.height / place.picture_height),
        math.log2(place.width / place.picture_width),
    )

    def waves(start: int, length: int, whole: int, count: int) -> list[list[float]]:
        found = []
        for number in range(count):
            angle = math.pi * (start + length * (number + 0.5) / count) / whole
            found.append([f(angle * 2**octave) for octave in range(_OCTAVES) for f in (math.sin, math.cos)])
        return found

    down = waves(place.pixel_y, place.height, place.picture_height, rows)
    across = waves(place.pixel_x, place.width, place.picture_width, cols)
    return [[*y, *x, *extent] for y in down for x in across]
