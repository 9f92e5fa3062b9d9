"""What is known of a stored tile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints


class TileEntry(BaseModel):
    """One file of the pyramid, as the manifest lists it."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    """Hexadecimal digest of the file."""
    bytes: Annotated[int, Field(ge=0)]
    """Size of the file."""


Tiles = dict[str, TileEntry]
"""Key -> entry."""


def tiles_to_json(tiles: Mapping[str, TileEntry]) -> dict[str, dict[str, Any]]:
    """Entries as JSON types."""
    return {key: entry.model_dump() for key, entry in tiles.items()}


def tiles_from_json(document: Mapping[str, Any]) -> Tiles:
    """The reverse of `tiles_to_json`; raises `ValueError` for anything else."""
    return {key: TileEntry.model_validate(value) for key, value in document.items()}
