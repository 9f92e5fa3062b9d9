"""An IP-Adapter (Ye et al. 2023): what lets a text-to-image model look at pictures. Its weights and the image
encoder that it was trained with."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from render.errors import BadInput
from render.safetensors_file import file_problem, file_sha256, read_header
from render.spec.fields import Text
from render.spec.files import PICKLES, home_path, is_file, is_folder
from render.spec.init_image import check_digest
from render.spec.validation import CONFIG, Checked

EXAMPLE = "ip-adapter_sdxl.safetensors:0.6"
LARGEST_WEIGHT = 10.0
ENCODER = "image_encoder"
_PLAIN, _PLUS, _FACE = "image_proj.proj.weight", "image_proj.latents", "image_proj.proj.3.weight"
_WIDTHS = {_PLAIN: _PLAIN, _PLUS: "image_proj.proj_in.weight", _FACE: "image_proj.proj.0.weight"}
"""The kinds of adapters by a tensor that only they have, and one that has the image encoder's width."""


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class IpAdapter(Checked):
    """An adapter's file and the folder of its image encoder, identified by their bytes."""

    part_of: ClassVar[str] = "ip_adapter"

    path: Annotated[Text, Field(description="Where the adapter's file is on this machine.")]
    digest: Annotated[
        str,
        AfterValidator(check_digest),
        Field(description="SHA-256 over the names and contents of its file and of its image encoder's."),
    ]
    weight: Annotated[
        float,
        Field(ge=0.0, le=LARGEST_WEIGHT, description="How strongly the image resembles the references."),
    ] = 1.0

    @classmethod
    def from_any(cls, value: Any) -> Self:
        """From text as `FILE`, `FOLDER` or either with `:WEIGHT`, or from names and values; files are read.

        Raises `BadInput`.
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, str):
            return cls.open(*_parsed(value))
        if isinstance(value, dict) and "digest" not in value and isinstance(value.get("path"), str):
            return cls.from_values(value | {"digest": cls.open(home_path(value["path"])).digest}, "")
        return cls.from_values(value, f"is not a file; write e.g. {EXAMPLE}")

    @classmethod
    def open(cls, path: Path, weight: float = 1.0) -> Self:
        """Check and digest an adapter. Raises `BadInput` for what is none, or lacks its image encoder."""
        file = _file_of(path)
        if (damage := file_problem(file)) is not None:
            raise BadInput("ip_adapter", str(file), f"is a file {damage}")
        found = cls(path=str(file), digest="0" * 64, weight=weight)
        if not any(name.startswith("ip_adapter.") for name in read_header(file)):
            raise BadInput("ip_adapter", str(file), "has no weights of an IP-Adapter; use --lora for a LoRA")
        if found._kind is None:
            fix = "is of a kind that needs face recognition; use a plain or a Plus adapter"
            raise BadInput("ip_adapter", str(file), fix)
        encoder = found.encoder
        files = [file, encoder / "config.json", *sorted(encoder.glob("*.safetensors"))]
        lines = [(each.name if number else "", file_sha256(each)) for number, each in enumerate(files)]
        return found.with_changes(digest=hashlib.sha256(json.dumps(lines).encode()).hexdigest())

    @property
    def text_width(self) -> int:
        """The width of the text states beside which its own are attended to."""
        header = read_header(Path(self.path))
        return next(int(each["shape"][1]) for name, each in header.items() if name.endswith("to_k_ip.weight"))

    @property
    def encoder(self) -> Path:
        """The folder of the image encoder that it was trained with. Raises `BadInput` where there is none."""
        beside = Path(self.path).parent
        seen: list[str] = []
        # As in the repository of the adapters for Stable Diffusion, whose two encoders serve several of them.
        for folder in (beside / ENCODER, beside.parent / "models" / ENCODER, beside.parent / ENCODER):
            width = self._width_of(folder)
            if width == self._width:
                return folder
            if width is not None:
                seen.append(f"{folder} is of {width}")
        needed = f"needs the folder {ENCODER} of an encoder of width {self._width} beside it"
        raise BadInput("ip_adapter", self.path, f"{needed} ({', '.join(seen) or 'there is none'}); add it")

    @property
    def bytes(self) -> int:
        """The size of its files on this machine."""
        files = [Path(self.path), *self.encoder.glob("*.safetensors")]
        return sum(file.stat().st_size for file in files)

    @property
    def _kind(self) -> str | None:
        header = read_header(Path(self.path))
        faces = any("_lora." in name for name in header)
        return None if faces else next((name for name in _WIDTHS if name in header), None)

    @property
    def _width(self) -> int:
        assert self._kind is not None, "`open` has refused others"
        return int(read_header(Path(self.path))[_WIDTHS[self._kind]]["shape"][1])

    def _width_of(self, folder: Path) -> int | None:
        """The width of what a folder's encoder says of a picture; None where it holds none."""
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if not isinstance(config, dict) or not any(folder.glob("*.safetensors")):
            return None
        name, default = ("projection_dim", 512) if self._kind == _PLAIN else ("hidden_size", 768)
        width = config.get(name, default)
        return width if isinstance(width, int) else None


def _file_of(path: Path) -> Path:
    if is_folder(path):
        files = sorted(path.glob("*.safetensors"))
        if len(files) != 1:
            fix = "give the path of one" if files else "give the path of an adapter"
            raise BadInput("ip_adapter", str(path), f"has {len(files)} files of safetensors; {fix}")
        return files[0]
    if not is_file(path):
        raise BadInput("ip_adapter", str(path), "is no file or folder on this machine; check the path")
    if path.suffix.lower() in PICKLES:
        fix = "is a pickle, which can run any code when it is opened; use the safetensors of the same name"
        raise BadInput("ip_adapter", str(path), fix)
    return path


def _parsed(text: str) -> tuple[Path, float]:
    path, colon, tail = text.rpartition(":")
    try:
        weight = float(tail)
    except ValueError:
        return home_path(text), 1.0
    if not colon or is_file(home_path(text)) or is_folder(home_path(text)):
        return home_path(text), 1.0
    if not math.isfinite(weight) or not 0.0 <= weight <= LARGEST_WEIGHT:
        raise BadInput("ip_adapter", text, f"has a weight that is not from 0 to {LARGEST_WEIGHT:g}")
    return home_path(path), weight
