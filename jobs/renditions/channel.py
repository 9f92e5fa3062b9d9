"""Channels: where images are sold or printed, each with the file that it takes and the rules that it checks.

A channel is a YAML file. Those of Chorale lie in `channels/` beside this module; `--channel FILE.yaml` reads
any other, and files in `~/.config/chorale/channels` are known by their names.
"""

from __future__ import annotations

import os
from datetime import date
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from jobs.renditions.colors import Color, parse_color
from jobs.renditions.sizes import parse_bytes
from render.errors import BadInput
from render.output import encode
from render.spec import load_yaml

FORMATS = ("jpeg", "png", "webp", "tiff")
ENDINGS, CONTENT_TYPES = encode.ENDINGS, encode.CONTENT_TYPES
Format = Literal["jpeg", "png", "webp", "tiff"]
Fit = Literal["pad", "crop", "inside"]
_Bytes = Annotated[
    int, BeforeValidator(lambda value: parse_bytes(value) if isinstance(value, str) else value)
]
"""`2MB` or a number."""
_Color = Annotated[
    Color, BeforeValidator(lambda value: parse_color(value) if isinstance(value, str) else value)
]
"""`white`, or three numbers."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Rendition(_Part):
    """How a file is made from an image."""

    width: int | None = Field(
        default=None, ge=1, le=65_500, description="Pixels; None keeps the image's own size."
    )
    height: int | None = Field(default=None, ge=1, le=65_500)
    fit: Fit = "pad"
    """`pad` adds background, `crop` cuts the longer side, `inside` keeps the shape and may be smaller."""
    background: _Color | None = None
    """Of padding, and behind transparent pixels. None keeps transparency, and is white in JPEG files."""
    format: Format = "jpeg"
    quality: int = Field(default=92, ge=1, le=100)
    max_bytes: _Bytes | None = Field(default=None, ge=1)
    """The quality is lowered until the file is not larger."""
    dpi: int = Field(default=72, ge=1, le=10_000)


class Rules(_Part):
    """What a channel checks; None is not checked."""

    formats: tuple[Format, ...] | None = None
    shortest_side: int | None = None
    """At least so many pixels."""
    longest_side: tuple[int, int] | None = None
    """From and to, in pixels."""
    megapixels: float | None = None
    """At most."""
    shape: float | None = None
    """Width divided by height, within a hundredth."""
    max_bytes: _Bytes | None = None
    background: _Color | None = None
    """Color of all pixels of the edge, exactly (within 2 of 255 in JPEG files)."""
    fill: tuple[float, float] | None = None
    """Share of the frame's longer side that is not background, from and to."""
    enlarged: bool | None = None
    """False: the file must not have more pixels than the image."""
    dpi: int | None = None
    marked_as_ai: bool | None = None
    """True: the file says by IPTC's DigitalSourceType that a trained model made it."""


class Channel(_Part):
    """A channel, as its file describes it."""

    name: str
    title: str
    source: str
    """Where its rules are published, or who wrote them."""
    checked: date
    """When they were read."""
    note: str = ""
    file_name: str = "{base_id}_{n}"
    """Name of a file without its ending; the fields are those of `jobs.renditions.names`."""
    rendition: Rendition = Rendition()
    rules: Rules = Rules()


def find_channel(name: str) -> Channel:
    """The channel of this name or in this file. Raises `BadInput`."""
    if name.endswith((".yaml", ".yml")):
        return _read(name, _text(Path(name)))
    own = _own_folder() / f"{name}.yaml"
    if name in _builtin() and not own.is_file():
        return _builtin()[name]
    if own.is_file() and Path(name).name == name:
        return _read(name, _text(own))
    known = ", ".join(sorted({*_builtin(), *(file.stem for file in _own_folder().glob("*.yaml"))}))
    raise BadInput("channel", name, f"is unknown; use one of {known}, or a .yaml file")


def known_channels() -> list[Channel]:
    """The channels that come with Chorale, by name."""
    return [channel for _, channel in sorted(_builtin().items())]


@cache
def _builtin() -> dict[str, Channel]:
    folder = resources.files("jobs") / "renditions" / "channels"
    found = [
        _read(each.name, each.read_text("utf-8")) for each in folder.iterdir() if each.name.endswith("yaml")
    ]
    return {channel.name: channel for channel in found}


def _own_folder() -> Path:
    home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(home) / "chorale" / "channels"


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise BadInput("channel", str(file), f"cannot be read ({exc}); give a YAML file") from exc


def _read(name: str, text: str) -> Channel:
    try:
        return Channel.model_validate(load_yaml(text))
    except ValidationError as exc:
        error = exc.errors()[0]
        place = ".".join(map(str, error["loc"])) or "the file"
        raise BadInput("channel", name, f"{place}: {error['msg']}; see docs/RENDITIONS.md") from exc
    except (ValueError, RecursionError) as exc:
        raise BadInput("channel", name, f"is not YAML ({' '.join(str(exc).split())}); fix it") from exc
