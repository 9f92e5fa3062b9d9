"""What the flags of `chorale export` ask for: a rendition, and the channel whose rules it is held to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.renditions.channel import ENDINGS, FORMATS, Channel, Rendition, Rules, find_channel
from jobs.renditions.colors import parse_color
from jobs.renditions.sizes import parse_bytes, parse_pixels
from render.errors import BadInput

_BY_ENDING = {f".{ending}": name for name, ending in ENDINGS.items()} | {".jpeg": "jpeg", ".tiff": "tiff"}


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A rendition, and the rules and names of its channel."""

    rendition: Rendition
    channel: Channel | None = None

    @property
    def rules(self) -> Rules:
        """The channel's rules; without one, none."""
        return Rules() if self.channel is None else self.channel.rules

    def template(self, target: str) -> str:
        """`target` itself, or with the channel's file name where it is a folder."""
        if self.channel is not None and (target.endswith("/") or Path(target).is_dir()):
            return str(Path(target) / self.channel.file_name)
        return target


def read_wanted(
    target: str,
    *,
    channel: str | None,
    size: str | None,
    fit: str | None,
    format: str | None,
    quality: int | None,
    max_bytes: str | None,
    background: str | None,
    dpi: int | None,
) -> Wanted:
    """A channel's rendition with the given values in place of its own. Raises `BadInput`."""
    found = None if channel is None else find_channel(channel)
    values: dict[str, Any] = {"fit": fit, "quality": quality, "dpi": dpi, "format": format}
    if size is not None:
        values["width"], values["height"] = parse_pixels(size)
    if max_bytes is not None:
        values["max_bytes"] = parse_bytes(max_bytes)
    if background is not None:
        values["background"] = parse_color(background)
    if format is None:
        values["format"] = _BY_ENDING.get(Path(target).suffix.lower())
        if values["format"] is None and found is None:
            endings = ", ".join(f".{ending}" for ending in ENDINGS.values())
            raise BadInput("target", target, f"has no known ending; use {endings}, or give --format")
    elif format not in FORMATS:
        raise BadInput("format", format, f"is unknown; use one of {', '.join(FORMATS)}")
    given = {name: value for name, value in values.items() if value is not None}
    base = Rendition() if found is None else found.rendition
    return Wanted(rendition=base.model_copy(update=given), channel=found)
