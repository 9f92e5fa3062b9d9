"""A learned word (textual inversion): a file with a text encoder's vectors for it, and the word.

The file's bytes and the word are part of the image's identity.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from render.errors import BadInput
from render.safetensors_file import file_problem, file_sha256, read_header
from render.spec.fields import Text, problem
from render.spec.files import PICKLES, check_exists, home_path, is_file
from render.spec.lora import check_digest
from render.spec.validation import CONFIG, Checked

EXAMPLE = "cat-toy.safetensors:<cat-toy>"
LONGEST_WORD = 64
MOST_VECTORS = 75
"""A CLIP encoder reads no more at once."""
SD_NAME, CLIP_L, CLIP_G = "emb_params", "clip_l", "clip_g"
"""Tensors of files that do not name the word, as A1111's have it."""


def _check_word(text: str) -> str:
    if not text or len(text) > LONGEST_WORD or not text.isprintable() or any(sign.isspace() for sign in text):
        raise problem(f"is no word for a prompt; use up to {LONGEST_WORD} characters without spaces")
    return text


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Embedding(Checked):
    """A word that a text encoder learns from a file; where the file lies does not matter to a spec."""

    part_of: ClassVar[str] = "embedding"

    path: Annotated[Text, Field(description="Where the file is on this machine.")]
    digest: Annotated[str, AfterValidator(check_digest), Field(description="SHA-256 of the file.")]
    word: Annotated[str, AfterValidator(_check_word), Field(description="What stands for it in a prompt.")]

    @classmethod
    def from_any(cls, value: Any) -> Self:
        """From text as `FILE` or `FILE:WORD`, or from names and values; a file is read then.

        Raises `BadInput`.
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, str):
            return cls.open(*_parsed(value))
        if isinstance(value, dict) and "digest" not in value and isinstance(value.get("path"), str):
            opened = cls.open(Path(value["path"]), value.get("word"))
            return cls.from_values({"word": opened.word} | value | {"digest": opened.digest}, "")
        return cls.from_values(value, f"is not a file; write e.g. {EXAMPLE}")

    @classmethod
    def open(cls, path: Path, word: str | None = None) -> Self:
        """Check a file's header. Without a word it is the one in the file, or else the file's name.

        Raises `BadInput` for a file that holds no vectors of a word.
        """

        def refused(fix: str) -> BadInput:
            return BadInput("embedding", str(path), fix)

        check_exists("embedding", path)
        if path.suffix.lower() in PICKLES:
            raise refused("is a pickle, which can run any code when it is opened; convert it to safetensors")
        if (damage := file_problem(path)) is not None:
            raise refused(f"is a file {damage}")
        header = read_header(path)
        shapes = [tuple(tensor["shape"]) for tensor in header.values()]
        if not set(header) <= {CLIP_L, CLIP_G} and len(header) != 1:
            raise refused(
                f"has {len(header)} tensors and is no learned word; use --lora or --model for others"
            )
        if not all(len(shape) in (1, 2) and 0 not in shape for shape in shapes):
            raise refused("has no vectors of a learned word; use another")
        vectors = {shape[0] if len(shape) == 2 else 1 for shape in shapes}
        if len(vectors) > 1 or max(vectors) > MOST_VECTORS:
            raise refused(
                f"has {max(vectors)} vectors; a word may have up to {MOST_VECTORS}, the same for all encoders"
            )
        if word is None:
            (first, *_) = header
            word = path.stem if first in (SD_NAME, CLIP_L, CLIP_G) else first
        return cls.from_values({"path": str(path), "digest": file_sha256(path), "word": word}, "")

    @property
    def bytes(self) -> int:
        """The size of the file on this machine."""
        return Path(self.path).stat().st_size

    @property
    def widths(self) -> dict[str, int]:
        """The width of the vectors by tensor, read from the file."""
        return {name: int(tensor["shape"][-1]) for name, tensor in read_header(Path(self.path)).items()}

    def tensor_for(self, part: str) -> str | None:
        """The tensor for a text encoder, `text_encoder` or `text_encoder_2`; None if the file has none."""
        names = list(self.widths)
        wanted = CLIP_L if part == "text_encoder" else CLIP_G
        if wanted in names:
            return wanted
        return names[0] if part == "text_encoder" and not set(names) & {CLIP_L, CLIP_G} else None


def check_words(embeddings: Sequence[Embedding]) -> None:
    """Raise `BadInput` for a word that is given twice."""
    words = [each.word.lower() for each in embeddings]
    for each in embeddings:
        if words.count(each.word.lower()) > 1:
            fix = f"has the word {each.word}, as another one has; give it another as FILE:WORD"
            raise BadInput("embedding", each.path, fix)


def _parsed(text: str) -> tuple[Path, str | None]:
    path, colon, word = text.rpartition(":")
    if not colon or is_file(home_path(text)) or "/" in word or "\\" in word:
        return home_path(text), None
    return home_path(path), word
