"""A LoRA on the model: a file and its weight. The file's bytes are part of the image's identity."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from render.errors import BadInput
from render.safetensors_file import file_problem, file_sha256, read_header
from render.spec.fields import Text, problem
from render.spec.files import check_exists, home_path, is_file
from render.spec.validation import CONFIG, Checked

EXAMPLE = "brand.safetensors:0.8"
LARGEST_WEIGHT = 10.0
_UNSUPPORTED = {
    "dora_scale": "is a DoRA in kohya's format, whose scales diffusers does not apply; use a plain LoRA",
    "hada_w1": "is a LoHa (LyCORIS), which diffusers does not load; convert it to a plain LoRA",
    "lokr_w": "is a LoKr (LyCORIS), which diffusers does not load; convert it to a plain LoRA",
}
_COMMA = re.compile(r"-?\d*,\d+", re.ASCII)
_LYCORIS = re.compile(r"\.(lora_mid|b?oft_\w+|on_input|w_norm|b_norm|[ab][12])(\.weight)?$")
"""Of LyCORIS, by the end of a name: LoCon in Tucker form, OFT, IA3, norms, GLoRA."""
_DOWN = re.compile(
    r"attn2[._](?:processor[._])?to_k(?:_lora)?[._](?:lora[._])?(?:lora_down|down|lora_A).*weight$"
)


def check_digest(text: str) -> str:
    """A SHA-256 in a spec; raises a validation error for any other text."""
    if len(text) != 64 or set(text) - set("0123456789abcdef"):
        raise problem("is not a SHA-256 in hexadecimal; name the file instead")
    return text


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Lora(Checked):
    """A LoRA file, identified by its bytes: where it lies on this machine does not matter to a spec."""

    part_of: ClassVar[str] = "lora"

    path: Annotated[Text, Field(description="Where the file is on this machine.")]
    digest: Annotated[str, AfterValidator(check_digest), Field(description="SHA-256 of the file.")]
    weight: Annotated[
        float,
        Field(ge=-LARGEST_WEIGHT, le=LARGEST_WEIGHT, description="How strongly it changes the model."),
    ] = 1.0

    @classmethod
    def from_any(cls, value: Any) -> Self:
        """From text as `FILE` or `FILE:WEIGHT`, or from names and values; a file is read then.

        Raises `BadInput`.
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, str):
            path, weight = _parsed(value)
            return cls.open(path, weight)
        if isinstance(value, dict) and "digest" not in value and isinstance(value.get("path"), str):
            return cls.from_values(value | {"digest": cls.open(Path(value["path"])).digest}, "")
        return cls.from_values(value, f"is not a file; write e.g. {EXAMPLE}")

    @classmethod
    def open(cls, path: Path, weight: float = 1.0) -> Self:
        """Check a file's header. Raises `BadInput` for one that is not a LoRA, or not one that loads."""
        check_exists("lora", path)
        if (damage := file_problem(path)) is not None:
            raise BadInput("lora", str(path), f"is a file {damage}")
        header = read_header(path)
        names = " ".join(header)
        for part, fix in _UNSUPPORTED.items():
            if part in names:
                raise BadInput("lora", str(path), fix)
        lycoris = next((name for name in header if _LYCORIS.search(name)), None)
        if lycoris is not None:
            fix = f"has tensors of LyCORIS ({lycoris[:80]}), which diffusers does not load; use a plain LoRA"
            raise BadInput("lora", str(path), fix)
        if "lora" not in names.lower():
            raise BadInput("lora", str(path), "has no LoRA weights; use --model for a whole model")
        return cls(path=str(path), digest=file_sha256(path), weight=weight)

    @property
    def bytes(self) -> int:
        """The size of the file on this machine."""
        return Path(self.path).stat().st_size

    @property
    def text_width(self) -> int | None:
        """The width of the text states that it was trained for, read from its file; None if it does not
        tell."""
        for name, tensor in read_header(Path(self.path)).items():
            if _DOWN.search(name) and len(tensor["shape"]) == 2:
                return int(tensor["shape"][1])
        return None


def check_once(loras: Sequence[Lora]) -> None:
    """Raise `BadInput` for a file that is given twice."""
    digests = [each.digest for each in loras]
    for lora in loras:
        if digests.count(lora.digest) > 1:
            raise BadInput("lora", lora.path, "is given twice; add up its weights and give it once")


def _parsed(text: str) -> tuple[Path, float]:
    path, colon, tail = text.rpartition(":")
    if colon and _COMMA.fullmatch(tail) and not is_file(home_path(text)):
        raise BadInput("lora", text, f"has a weight with a comma; write {path}:{tail.replace(',', '.')}")
    try:
        weight = float(tail)
    except ValueError:
        return home_path(text), 1.0
    if not colon or is_file(home_path(text)):
        return home_path(text), 1.0
    if not math.isfinite(weight) or abs(weight) > LARGEST_WEIGHT:
        fix = f"has a weight that is not from {-LARGEST_WEIGHT:g} to {LARGEST_WEIGHT:g}"
        raise BadInput("lora", text, fix)
    return home_path(path), weight
