"""One image for a group to render, handed to its ranks as a small JSON file."""

from __future__ import annotations

import json
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

    @property
    def images(self) -> tuple[FurtherImage, ...]:
        """All images, with the first one."""
        return (FurtherImage(spec=self.spec, out=self.out), *self.more)

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
