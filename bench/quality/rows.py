"""The rows of the tables: ways to render a prompt, as changes of its spec."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from render.builtin.data import NATIVE, random_scene
from render.builtin.judge import prompt_of
from render.builtin.studio import Scene
from render.errors import BadInput
from render.spec import Spec

SCENES_SEED = 9
NATIVE_ROW = "native size"
PLAIN = "plain tiling"


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to render."""

    name: str
    changes: dict[str, Any] = field(default_factory=dict)
    cascade: bool = True
    """Without it windows are denoised from noise at the full size: MultiDiffusion (Bar-Tal et al. 2023)."""
    placed: bool = True
    """Without it every window is told that it is a whole picture."""


WAYS = (
    Way(name="cascade, overlap"),
    Way(name="cascade, shift", changes={"blend": "shift"}),
    Way(name=PLAIN, cascade=False),
    Way(name="plain tiling, shift", changes={"blend": "shift"}, cascade=False),
    Way(name="cascade, without ILVR", changes={"ilvr": 0.0}),
    Way(name="cascade, without crop coordinates", placed=False),
    Way(name="cascade, skip residual 0.5", changes={"skip_residual": 0.5}),
    Way(name="cascade, strength 0.45", changes={"strength": 0.45}),
    Way(name="cascade, strength 0.6", changes={"strength": 0.6}),
    Way(name="cascade, dilated 0.5", changes={"dilated": 0.5}),
    Way(name="cascade, cross attention 0.5", changes={"cross_attention": 0.5}),
    Way(
        name="cascade, learned attention 1",
        changes={"cross_attention": 1.0, "cross_attention_form": "learned"},
    ),
)
"""Those whose fields this version's spec does not have are left out."""


def known_ways(more: Sequence[str] = ()) -> dict[str, Way]:
    """By name; `more` are rows of one's own, written `NAME: field=value, field=value`.

    Raises `BadInput` for one that is no such line.
    """
    own = {field.name for field in Spec.fields()}
    ways = {way.name: way for way in WAYS if way.changes.keys() <= own}
    return ways | {way.name: way for way in map(_parsed, more)}


def _parsed(text: str) -> Way:
    name, colon, rest = text.partition(":")
    pairs = [part.partition("=") for part in rest.split(",")]
    if not colon or not all(equals for _, equals, _ in pairs):
        raise BadInput("add", text, "is not NAME: field=value, field=value")
    return Way(name=name.strip(), changes={key.strip(): _value(value.strip()) for key, _, value in pairs})


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt, what it asks for, and the seed that it is rendered with."""

    number: int
    scene: Scene

    @property
    def text(self) -> str:
        return prompt_of(self.scene)

    def spec(self, way: Way, times: int, steps: int) -> Spec:
        """Its picture at so many times the native side, in one way."""
        values = {"prompt": self.text, "seed": self.number, "steps": steps, "tile_size": 2048}
        side = NATIVE * times
        return Spec.from_mapping(values | {"width": side, "height": side} | way.changes)


def prompts(total: int) -> list[Prompt]:
    """The first so many of one endless list."""
    draw = np.random.default_rng(SCENES_SEED)
    return [Prompt(number=number, scene=random_scene(draw)) for number in range(total)]
