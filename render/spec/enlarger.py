"""A super-resolution network that enlarges between stages, identified by its file's bytes."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from render.errors import BadInput
from render.safetensors_file import file_problem, file_sha256
from render.spec.fields import Text
from render.spec.files import PICKLES, check_exists, home_path
from render.spec.init_image import check_digest
from render.spec.validation import CONFIG, Checked

EXAMPLE = "realesr-x2.safetensors"
BUILTIN = "builtin"
"""The network that the package brings, trained for the pictures of the built-in model."""
BUILTIN_FILE = Path(str(resources.files("render") / "builtin" / "enlarger.safetensors"))
"""Where it lies on this machine."""


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class EnlargerFile(Checked):
    """A network in a safetensors file: where it lies on this machine does not matter to a spec."""

    part_of: ClassVar[str] = "enlarger"

    path: Annotated[Text, Field(description="Where the file is on this machine.")]
    digest: Annotated[str, AfterValidator(check_digest), Field(description="SHA-256 of the file.")]

    @classmethod
    def from_any(cls, value: Any) -> Self:
        """From a path or `builtin`, whose file is read then, or from names and values. Raises `BadInput`."""
        if isinstance(value, cls):
            return value
        if value == BUILTIN:
            return cls.open(BUILTIN_FILE)
        if isinstance(value, str):
            return cls.open(home_path(value))
        return cls.from_values(value, f"is not a file; write e.g. {EXAMPLE}")

    @classmethod
    def open(cls, path: Path) -> Self:
        """Check a file's header. Raises `BadInput` for one that is not sound safetensors."""
        check_exists("enlarger", path)
        if path.suffix.lower() in PICKLES:
            fix = "is a pickle, which can run any code when it is opened; convert it to safetensors"
            raise BadInput("enlarger", str(path), fix)
        if (damage := file_problem(path)) is not None:
            raise BadInput("enlarger", str(path), f"is a file {damage}")
        return cls(path=str(path), digest=file_sha256(path))

    @property
    def bytes(self) -> int:
        """The size of the file on this machine."""
        return Path(self.path).stat().st_size
