"""Control pictures and their networks (ControlNet, Zhang et al. 2023): what a picture's layout follows.

A control picture covers the whole image. It is cut for each window at the window's place, at the size of each
stage, and is given ready: edges, depth, a pose, drawn by whatever makes them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from render.errors import BadInput
from render.safetensors_file import file_problem, file_sha256
from render.spec.fields import Text, problem
from render.spec.files import home_path, is_file
from render.spec.init_image import SHAPE_TOLERANCE, InitImage, check_digest
from render.spec.validation import CONFIG, Checked

EXAMPLE = "canny=edges.png:0.8:0-0.6"
FOLDER_EXAMPLE = "controlnet-canny"
LARGEST_WEIGHT = 10.0
_FORM = re.compile(
    r"(?P<kind>[^=]*)=(?P<path>.+?)(?::(?P<weight>\d*\.?\d+))?(?::(?P<start>\d*\.?\d+)-(?P<end>\d*\.?\d+))?",
    re.DOTALL,
)
_KIND = re.compile(r"[a-z][a-z0-9_-]{0,39}")
_Share = Annotated[float, Field(ge=0.0, le=1.0)]


def _check_kind(text: str) -> str:
    if not _KIND.fullmatch(text):
        raise problem("is not a kind of control, as canny or depth; write KIND=IMAGE")
    return text


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Control(InitImage):
    """A control picture, identified by its bytes, and how it counts."""

    part_of: ClassVar[str] = "control"

    kind: Annotated[
        Text,
        AfterValidator(_check_kind),
        Field(description="What it shows: canny, depth, openpose, tile ..."),
    ]
    weight: Annotated[
        float, Field(ge=0.0, le=LARGEST_WEIGHT, description="How strongly the image follows it.")
    ] = 1.0
    start: Annotated[_Share, Field(description="Share of the steps before it counts.")] = 0.0
    end: Annotated[_Share, Field(description="Share of the steps after which it does not count.")] = 1.0

    @classmethod
    def from_any(cls, value: Any) -> Self:
        """From text as `KIND=IMAGE`, `KIND=IMAGE:WEIGHT`, `KIND=IMAGE:START-END` or all of it, or from names
        and values; a file is read then. Raises `BadInput`."""
        if isinstance(value, cls):
            return value
        if isinstance(value, str):
            return cls.from_any(_parsed(value))
        if isinstance(value, dict) and "digest" not in value and isinstance(value.get("path"), str):
            value = value | cls.described(home_path(value["path"]))
        found = cls.from_values(value, f"is not KIND=IMAGE; write e.g. {EXAMPLE}")
        if found.start >= found.end:
            raise BadInput(
                "control", f"{found.start:g}-{found.end:g}", "is no range of steps; use e.g. 0-0.6"
            )
        return found

    def check_shape(self, width: int, height: int) -> None:
        """Raise `BadInput` unless it has the shape of an image of `width` x `height`."""
        fitting = width * self.height / self.width
        if abs(height - fitting) > max(8, SHAPE_TOLERANCE * fitting):
            shape = f"{self.width}x{self.height}, another shape than {width}x{height}"
            raise BadInput("control", self.path, f"is {shape}; make it for the whole image")

    def counts_at(self, step: int, steps: int) -> bool:
        """Whether it counts at a step of the schedule; the rule is diffusers'."""
        return not (step / steps < self.start or (step + 1) / steps > self.end)


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class ControlNetwork(Checked):
    """A folder with a ControlNet, identified by its configuration and weights."""

    part_of: ClassVar[str] = "controlnet"

    path: Annotated[Text, Field(description="Where the folder is on this machine.")]
    digest: Annotated[
        str,
        AfterValidator(check_digest),
        Field(description="SHA-256 over the names and contents of its configuration and its safetensors."),
    ]

    @classmethod
    def from_any(cls, value: Any) -> Self:
        """From a folder's path, which is read then, or from names and values. Raises `BadInput`."""
        if isinstance(value, cls):
            return value
        if isinstance(value, str):
            return cls.open(home_path(value))
        if isinstance(value, dict) and "digest" not in value and isinstance(value.get("path"), str):
            return cls.open(home_path(value["path"]))
        return cls.from_values(value, f"is not a folder; write e.g. {FOLDER_EXAMPLE}")

    @classmethod
    def open(cls, path: Path) -> Self:
        """Digest a folder. Raises `BadInput` for one that is not a ControlNet in diffusers' format."""
        if not is_file(path / "config.json"):
            fix = "is no folder with the config.json of a ControlNet on this machine; give the path of one"
            raise BadInput("controlnet", str(path)[:200], fix)
        weights = sorted(path.glob("*.safetensors"))
        if not weights:
            raise BadInput("controlnet", str(path), "has no safetensors; download it again, or convert it")
        for file in weights:
            if (damage := file_problem(file)) is not None:
                raise BadInput("controlnet", str(path), f"has the file {file.name} {damage}")
        lines = [(file.name, file_sha256(file)) for file in (path / "config.json", *weights)]
        digest = hashlib.sha256(json.dumps(lines).encode()).hexdigest()
        return cls(path=str(path), digest=digest)

    @property
    def bytes(self) -> int:
        """The size of its weights on this machine."""
        return sum(file.stat().st_size for file in Path(self.path).glob("*.safetensors"))


def check_controls(controls: Sequence[Control], networks: Sequence[ControlNetwork]) -> None:
    """Raise `BadInput` unless each control picture has its network, and each network a picture."""
    if controls and not networks:
        raise BadInput("control", controls[0].path, "needs a network; give --controlnet FOLDER")
    if networks and not controls:
        raise BadInput("controlnet", networks[0].path, "needs a picture; give --control KIND=IMAGE")
    if len(networks) > 1 and len(networks) != len(controls):
        fix = f"are {len(networks)} networks for {len(controls)} pictures; give one for all, or one for each"
        raise BadInput("controlnet", len(networks), fix)


def _parsed(text: str) -> dict[str, Any]:
    form = _FORM.fullmatch(text)
    if form is None:
        raise BadInput("control", text[:120], f"is not KIND=IMAGE[:WEIGHT][:START-END]; write e.g. {EXAMPLE}")
    whole = text.partition("=")[2]
    if is_file(home_path(whole)):
        return {"kind": form["kind"], "path": whole}
    numbers = {name: float(form[name]) for name in ("weight", "start", "end") if form[name] is not None}
    return {"kind": form["kind"], "path": form["path"]} | numbers
