"""What a signed file claims about its origin (C2PA): who made it with what, and which pictures went in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jobs.renditions.channel import Rendition
from render.output.encode import SOURCE_TYPES, published_parameters
from render.output.manifest import Manifest
from render.spec import TRAINED

AGENT = "Chorale"
GENERATION = "io.chorale.generation"
"""Label of the assertion that identifies the image."""
_INPUTS = {
    "init": "init image",
    "control": "control picture",
    "reference": "reference picture",
}
"""Fields of the spec that hold pictures, and their names in a claim: the files' own names stay private."""


def claim_of(
    manifest: Manifest, *, format: str, publish_prompt: bool = False, changes: Sequence[str] = ()
) -> dict[str, Any]:
    """The C2PA manifest definition of a file that was made from a finished image.

    `format` is the file's MIME type. `changes` are actions of C2PA that followed the generation. The prompts
    are part of it only with `publish_prompt`.
    """
    agent = {"name": AGENT, "version": manifest.versions.get("chorale", "unknown")}
    ingredients = _ingredients(manifest)
    source = SOURCE_TYPES[manifest.spec.get("source_type", TRAINED)]
    created = {"action": "c2pa.created", "digitalSourceType": source, "softwareAgent": agent}
    placed = [
        {"action": "c2pa.placed", "parameters": {"ingredientIds": [each["label"]]}}
        for each in ingredients
        if each["relationship"] == "componentOf"
    ]
    actions = [created, *placed, *({"action": name, "softwareAgent": agent} for name in changes)]
    return {
        "claim_generator_info": [agent],
        "format": format,
        "ingredients": ingredients,
        "assertions": [
            {"label": "c2pa.actions.v2", "data": {"actions": actions}},
            {"label": GENERATION, "data": _generation(manifest, publish_prompt)},
        ],
    }


def changes_of(wanted: Rendition, width: int, height: int) -> tuple[str, ...]:
    """The actions of C2PA that a rendition does to an image of this size in pixels."""
    frame = wanted.width or width, wanted.height or height
    if frame == (width, height):
        return ()
    same_shape = frame[0] * height == frame[1] * width
    cropped = wanted.fit == "crop" and not same_shape
    return ("c2pa.resized", "c2pa.cropped") if cropped else ("c2pa.resized",)


def _ingredients(manifest: Manifest) -> list[dict[str, Any]]:
    """The pictures that went in. One whose pixels were kept is a component; the others were looked at."""
    found = []
    for field, name in _INPUTS.items():
        given = manifest.spec.get(field) or ()
        for number, picture in enumerate(given if isinstance(given, list | tuple) else [given]):
            kept = field == "init" and manifest.kept is not None
            found.append(
                {
                    "label": f"{field}{number or ''}",
                    "title": f"{name} {number + 1}" if number else name,
                    "format": "application/octet-stream",
                    "relationship": "componentOf" if kept else "inputTo",
                    "instance_id": f"sha256:{picture['digest']}",
                }
            )
    return found


def _generation(manifest: Manifest, publish_prompt: bool) -> dict[str, Any]:
    """What identifies the image: equal digests are equal images."""
    data: dict[str, Any] = {
        "digest": manifest.digest,
        "root": manifest.root,
        "model": {"family": manifest.model.family, "digest": manifest.model.digest},
    }
    if publish_prompt:
        data["parameters"] = published_parameters(manifest.spec, prompt=True)
    return data
