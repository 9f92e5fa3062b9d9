"""One image for a group to render, handed to its ranks as a small JSON file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from render.model_info import ModelInfo
from render.models.model_paths import ModelPaths

CHECKPOINT_S = 30.0
"""Between two checkpoints."""
LATENTS_KEY = "latents.safetensors"
"""Where a request for latents puts them in its sink: one tensor `latents`, float32 [C, h, w]."""
ON_DEVICE, ON_CPU, FREE = TEXT_ENCODERS = ("gpu", "cpu", "free")
"""Where text encoders are between two prompts: on the device of the rank that encodes, on its CPU, where they
compute too, or nowhere."""
PATIENCE_S = 120.0
"""A render waits so long for a store that is away, unless CHORALE_STORE_PATIENCE_S is set."""


_WEIGHT_FIELDS = ("model", "refiner", "vae", "base", "dtype", "quantize")


def weights_of(spec: Mapping[str, Any]) -> tuple[Any, ...]:
    """The fields of a spec, as a mapping, that decide with which weights it is rendered."""
    loras = tuple((lora["digest"], lora.get("weight", 1.0)) for lora in spec.get("lora") or ())
    networks = tuple(network["digest"] for network in spec.get("controlnet") or ())
    words = tuple((each["digest"], each["word"]) for each in spec.get("embedding") or ())
    picture = spec.get("ip_adapter")
    adapter = None if picture is None else (picture["digest"], picture.get("weight", 1.0))
    return (*(spec.get(name) for name in _WEIGHT_FIELDS), loras, networks, words, adapter)


@dataclass(frozen=True, kw_only=True)
class FurtherImage:
    """An image that a request has beside its first one."""

    spec: dict[str, Any]
    out: str


@dataclass(frozen=True, kw_only=True)
class Request:
    """One image for one group; or several small ones, each for one rank of it."""

    spec: dict[str, Any]
    folders: ModelPaths
    info: ModelInfo
    """Of the model; of it and its refiner where there is one."""
    device: str
    out: str
    """The image's sink: a folder, or s3://bucket/prefix. Credentials come by the environment alone."""
    output: Literal["image", "latents"] = "image"
    """What goes into the sink: the tile pyramid and its manifest, or the final latents alone."""
    checkpoint_s: float = CHECKPOINT_S
    """Seconds between checkpoints."""
    text_encoder: str = ON_DEVICE
    """One of `TEXT_ENCODERS`."""
    slots: tuple[int, ...] = ()
    """Numbers of this node's slots, by local rank; the local ranks themselves where there is no farm."""
    patience_s: float = PATIENCE_S
    """Seconds for which a store that is away is waited for."""
    log: str | None = None
    """File that the ranks append their output to; None for the group's own log."""
    observer: str | None = None
    """Factory `module:function` of the ranks' observers, see `render.launch.observer`; None for none."""
    last: bool = True
    """The ranks end after this one; otherwise they wait for the next, with the model loaded."""
    more: tuple[FurtherImage, ...] = ()
    """Images of the same model, LoRA, ControlNets and dtype. Each rank renders its share of all images by
    itself, several at a time, which share model calls."""
    at_once: int = 1
    """With more than 1, for a group of one rank: so many requests are rendered at the same time and share
    model calls. Those that follow this one join it as soon as there is room, if they have the same `weights`.
    The events of each carry the number of its request."""

    @property
    def images(self) -> tuple[FurtherImage, ...]:
        """All images, with the first one."""
        return (FurtherImage(spec=self.spec, out=self.out), *self.more)

    @property
    def weights(self) -> tuple[Any, ...]:
        """What the ranks load for this request; requests with the same can share model calls."""
        return self.folders, self.info.digest, self.device, self.text_encoder, weights_of(self.spec)

    def write(self, path: Path) -> None:
        """Write the file atomically: the ranks are watching for it."""
        part = path.with_suffix(".part")
        part.write_text(json.dumps(asdict(self) | {"folders": self.folders.to_json()}), encoding="utf-8")
        part.rename(path)

    @classmethod
    def read(cls, path: Path) -> Request:
        values = json.loads(path.read_text(encoding="utf-8"))
        folders, info = ModelPaths.from_json(values["folders"]), ModelInfo(**values["info"])
        more = tuple(FurtherImage(**image) for image in values["more"])
        return cls(**values | {"folders": folders, "info": info, "more": more})
