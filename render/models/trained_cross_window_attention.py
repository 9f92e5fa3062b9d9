"""Trained cross-window attention: a small module beside a UNet, for models that bring one.

A window's token is pooled from the UNet's middle block and encodes where the window lies, so a token means
the same in every window. Each cell of a window attends with its own state and position, and the result is
added to the output of the UNet's layer. The form without training is `render.models.cross_window_attention`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from render.errors import ModelNotUsable
from render.models.adapter import WindowPlace
from render.models.cross_window_attention import BatchContext
from render.models.folder import TRAINED_ATTENTION, trained_attention_folder
from render.models.load_errors import load_errors

_OCTAVES = 4
FEATURES = 4 * _OCTAVES + 2
"""Numbers that encode the position of something in its image."""
_CONFIG, _WEIGHTS = "config.json", "model.safetensors"
_SAVED_NAMES = {
    "token": "say",
    "token_position": "say_place",
    "query": "ask",
    "query_position": "ask_place",
}
"""Layers whose parameters have another name in the file. The names in the file are those of version 0.1: a
model's digest covers the file, so they cannot change."""


class TrainedCrossWindowAttention(nn.Module):
    """Pools the windows' tokens and attends to them. Untrained, it adds nothing."""

    def __init__(self, channels: int, heads: int) -> None:
        """`channels` of the layer that it stands beside."""
        super().__init__()
        self.channels, self.heads = channels, heads
        self.token, self.query, self.key, self.value, self.out = (
            nn.Linear(channels, channels) for _ in range(5)
        )
        self.token_position, self.query_position = (nn.Linear(FEATURES, channels) for _ in range(2))
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def tokens(self, states: Tensor, places: Sequence[WindowPlace]) -> Tensor:
        """[B, cells, channels] of B windows -> [B, channels], one token each.

        The rounding of a matrix product of a few rows depends on a row's number, and ranks number their
        windows differently. So all cells are projected, as the UNet does, and positions are summed one by
        one.
        """
        features = torch.tensor([_features(place, 1, 1)[0] for place in places]).to(states)
        position = (features[:, None] * self.token_position.weight).sum(2) + self.token_position.bias
        tokens: Tensor = self.token(states).mean(1) + position
        return tokens

    def project(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """[P, N, channels] tokens -> keys and values, [P, heads, N, channels per head], the same for every
        window."""
        return self._split_heads(self.key(tokens)), self._split_heads(self.value(tokens))

    def forward(self, states: Tensor, places: Sequence[WindowPlace], keys: Tensor, values: Tensor) -> Tensor:
        """[B, cells, channels] of B windows, and keys and values [B, heads, N, channels per head] for each ->
        what is added to the cells."""
        features = torch.tensor([_features(place, *_cells(place, states.shape[1])) for place in places])
        query = self._split_heads(self.query(states + self.query_position(features.to(states))))
        attended = functional.scaled_dot_product_attention(query, keys, values)
        added: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return added

    def _split_heads(self, states: Tensor) -> Tensor:
        """[B, tokens, channels] -> [B, heads, tokens, channels per head]"""
        return states.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def save(self, folder: Path) -> None:
        """Write it into a model's folder, in half precision."""
        target = trained_attention_folder(folder) or folder / TRAINED_ATTENTION
        target.mkdir(exist_ok=True)
        config = {"channels": self.channels, "heads": self.heads}
        (target / _CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        weights = {
            _renamed(name, _SAVED_NAMES): value.half().cpu().contiguous()
            for name, value in self.state_dict().items()
        }
        save_file(weights, target / _WEIGHTS)
        (target / _WEIGHTS).chmod(0o644)


def load_trained_attention(
    folder: Path, device: torch.device, dtype: torch.dtype
) -> TrainedCrossWindowAttention:
    """The trained attention of a model's folder; raises `ModelNotUsable` when it does not load."""
    part = trained_attention_folder(folder) or folder / TRAINED_ATTENTION

    def refuse(reason: str) -> ModelNotUsable:
        fix = f"has a {part.name} that does not load ({reason}); download it again"
        return ModelNotUsable("model", str(folder), fix)

    with load_errors(refuse, None):
        config = json.loads((part / _CONFIG).read_text())
        attention = TrainedCrossWindowAttention(config["channels"], config["heads"])
        names = {saved: name for name, saved in _SAVED_NAMES.items()}
        weights = load_file(part / _WEIGHTS)
        attention.load_state_dict({_renamed(name, names): value for name, value in weights.items()})
    return attention.to(device, dtype).eval()


@dataclass(frozen=True, kw_only=True)
class TrainedContext:
    """What the windows attend to at a step."""

    attention: TrainedCrossWindowAttention
    strength: float
    keys_values: tuple[Tensor, Tensor] | None
    """[conditions, heads, N, channels per head] each; None where there are no tokens."""

    @classmethod
    def of(
        cls, attention: TrainedCrossWindowAttention, tokens: Tensor | None, strength: float
    ) -> TrainedContext:
        """From [conditions, N, channels] tokens of the windows."""
        if tokens is None or strength == 0.0:
            return cls(attention=attention, strength=0.0, keys_values=None)
        projected = attention.project(tokens.to(attention.token.weight))
        return cls(attention=attention, strength=strength, keys_values=projected)

    def attention_processor(self, original: Any, layer: int, batch: BatchContext) -> Any:
        """See `render.models.cross_window_attention.Context`. Only the first chosen layer has the module."""
        return original if layer else TrainedAttentionProcessor(original, self, batch)


class TrainedAttentionProcessor:
    """A diffusers attention processor: the layer's own attention plus the trained module."""

    def __init__(self, original: Any, context: TrainedContext, batch: BatchContext) -> None:
        self._original, self._context, self._batch = original, context, batch

    def __call__(self, layer: Any, hidden_states: Tensor, *others: Any, **more: Any) -> Tensor:
        context, batch = self._context, self._batch
        batch.tokens.append(context.attention.tokens(hidden_states, batch.places).float())
        plain: Tensor = self._original(layer, hidden_states, *others, **more)
        if context.keys_values is None:
            return plain
        keys, values = (part[list(batch.conditions)] for part in context.keys_values)
        added: Tensor = context.attention(hidden_states, batch.places, keys, values)
        return plain + added * context.strength


def _renamed(parameter: str, names: dict[str, str]) -> str:
    """`layer.weight` with the layer's other name, if it has one."""
    layer, _, rest = parameter.partition(".")
    return f"{names.get(layer, layer)}.{rest}"


def _cells(place: WindowPlace, count: int) -> tuple[int, int]:
    """Rows and columns of the cells that a window has in the layer."""
    rows = max(1, round(math.sqrt(count * place.height / place.width)))
    return rows, count // rows


def _features(place: WindowPlace, rows: int, cols: int) -> list[list[float]]:
    """[rows * cols, FEATURES]: the center of each cell as waves over the image, and the window's relative
    size."""
    extent = (
        math.log2(place.height / place.image_height),
        math.log2(place.width / place.image_width),
    )

    def waves(start: int, length: int, whole: int, count: int) -> list[list[float]]:
        features = []
        for number in range(count):
            angle = math.pi * (start + length * (number + 0.5) / count) / whole
            features.append(
                [f(angle * 2**octave) for octave in range(_OCTAVES) for f in (math.sin, math.cos)]
            )
        return features

    down = waves(place.pixel_y, place.height, place.image_height, rows)
    across = waves(place.pixel_x, place.width, place.image_width, cols)
    return [[*y, *x, *extent] for y in down for x in across]
