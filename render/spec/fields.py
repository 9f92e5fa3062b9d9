"""Fields of a spec: what every interface (flags, REST, form, columns, JSON schema, table) derives from.

A field stands once, in `render.spec.spec_fields.SpecFields`: its type, limits, default, help and examples as
pydantic knows them, and how it is presented as `Shown`. `SpecField` is that, read back.
"""

from __future__ import annotations

import json
import re
import types
import unicodedata
from dataclasses import dataclass
from typing import Annotated, Any, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MultipleOf
from pydantic import AfterValidator, GetCoreSchemaHandler
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from render.errors import BadInput

_DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+", re.ASCII)
NO_FLAG = ""
"""Of a field that has no flag of its own."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """How a field is presented; the rest of it stands in its type."""

    label: str
    group: str
    flag: str | None = None
    """`--name-of-the-field` if None; what does not start with `--` is an argument; or `NO_FLAG`."""
    unit: str = ""
    default: str = ""
    """What the default does, where the value does not say it."""
    long: bool = False
    """A sentence or more."""
    late: bool = False
    """Added after specs had been stored: left out wherever it has its default, so that they keep their
    digests."""
    local: bool = False
    """Names a file or a model of the machine that it is given on, so no web page takes it."""


@dataclass(frozen=True)
class OneOf:
    """A value out of a few; the JSON schema lists them."""

    choices: tuple[str, ...] | tuple[int, ...]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.literal_schema(list(self.choices))


def problem(fix: str) -> PydanticCustomError:
    """What a validator of a field raises: it becomes `BadInput` of that field and its value."""
    return PydanticCustomError("problem", "{fix}", {"fix": fix})


def _check_text(text: str) -> str:
    # JSON can write half a surrogate pair, which has no bytes; no database takes a null byte.
    if "\0" in text or (not text.isascii() and any(0xD800 <= ord(sign) <= 0xDFFF for sign in text)):
        raise problem("contains characters that are not text; remove them")
    return text


def is_blank(text: str) -> bool:
    """Whether nothing shows: blanks do not, nor format characters such as a zero-width space."""
    return all(sign.isspace() or unicodedata.category(sign) == "Cf" for sign in text)


def check_filled(text: str) -> str:
    """The text; a problem of the field if it is blank."""
    if is_blank(text):
        raise problem("is empty; give a value")
    return text


Text = Annotated[str, AfterValidator(_check_text)]
Filled = Annotated[Text, AfterValidator(check_filled)]
"""Text that is not blank."""


@dataclass(frozen=True, kw_only=True)
class SpecField:
    """One field as the faces see it."""

    name: str
    kind: type
    """str, int or float; `list` for several parts, `object` for anything else."""
    optional: bool
    required: bool
    default: Any
    choices: tuple[Any, ...]
    low: float | None
    high: float | None
    open_ends: bool
    """Whether the limits themselves are outside."""
    step: int | None
    help: str
    examples: tuple[Any, ...]
    shown: Shown

    @property
    def flag(self) -> str:
        given = self.shown.flag
        return f"--{self.name.replace('_', '-')}" if given is None else given

    @property
    def many(self) -> bool:
        """Whether the flag may repeat."""
        return self.kind is list

    @property
    def default_text(self) -> str:
        """The default for a person; empty where there is none."""
        if self.shown.default or self.required or self.default in (None, "", ()):
            return self.shown.default
        return f"{self.default:g}" if isinstance(self.default, float) else str(self.default)

    @property
    def limits(self) -> str:
        """`1 to 1000`, or the choices; empty where anything goes."""
        if self.choices:
            return ", ".join(map(str, self.choices))
        if self.low is None or self.high is None:
            return ""
        if self.open_ends:
            return f"more than {_number(self.low)}, less than {_number(self.high)}"
        return f"{_number(self.low)} to {_number(self.high)}"

    def problem_with(self, value: Any) -> str:
        """Why a value cannot be this field's, and what could be, as `BadInput` takes it."""
        if self.choices:
            return f"is unknown; use one of {self.limits}"
        if self.kind is int:
            whole = isinstance(value, int) and not isinstance(value, bool)
            if self.step and whole and value % self.step:
                return f"is not a multiple of {self.step}; use {self._nearest_multiples(value)}"
            return f"is not a whole number from {self.limits}"
        if self.kind is float:
            number = isinstance(value, int | float) and not isinstance(value, bool) and value - value == 0
            return f"is {'out of range' if number else 'not a finite number'}; use {self.limits}"
        return "is not text; put it in quotes" if self.kind is str else "cannot be read"

    def _nearest_multiples(self, value: int) -> str:
        step, low, high = self.step or 1, int(self.low or 0), int(self.high or value)
        near = {min(max(near, low), high) for near in (value // step * step, value // step * step + step)}
        return " or ".join(map(str, sorted(near)))

    def parse(self, value: Any) -> Any:
        """The value that a text stands for: a flag, a cell or an input of a form. What is not text stays.

        Raises `BadInput`.
        """
        if not isinstance(value, str):
            return value
        if self.kind is list:
            return _parse_parts(self.name, value)
        if self.kind not in (int, float):
            return value
        if _DECIMAL_COMMA.fullmatch(value.strip()) and self.kind is float:
            raise BadInput(self.name, value[:80], f"has a comma; write {value.strip().replace(',', '.')}")
        try:
            # int() and float() also take 1_000, and the digits of other scripts.
            if not value.isascii() or "_" in value:
                raise ValueError(value)
            return self.kind(value)
        except ValueError as exc:
            raise BadInput(self.name, value[:80], self.problem_with(value)) from exc

    def text(self, value: Any) -> str:
        """The text that `parse` reads as this value; empty for the value that nothing stands for."""
        if value in (None, ()):
            return ""
        if self.kind is list and not isinstance(value, str):
            return "\n".join(
                part if isinstance(part, str) else json.dumps(part, ensure_ascii=False) for part in value
            )
        return str(value)


def read_field(name: str, info: FieldInfo) -> SpecField:
    """A field of a definition; one without `Shown` is presented under its own name."""
    shown = next((each for each in info.metadata if isinstance(each, Shown)), None)
    choices = next((each.choices for each in info.metadata if isinstance(each, OneOf)), ())
    kind, optional = _kind(info.annotation)
    low, high, step, open_ends = _limits(info.metadata)
    return SpecField(
        name=name,
        kind=kind,
        optional=optional,
        required=info.is_required(),
        default=None if info.is_required() else info.default,
        choices=tuple(choices),
        low=low,
        high=high,
        open_ends=open_ends,
        step=step,
        help=info.description or "",
        examples=tuple(info.examples or ()),
        shown=shown or Shown(label=name.replace("_", " ").capitalize(), group="Other"),
    )


def _kind(annotation: Any) -> tuple[type, bool]:
    """The plain type of an annotation, and whether it may be None."""
    if get_origin(annotation) is Annotated:
        return _kind(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        inner = [each for each in get_args(annotation) if each is not types.NoneType]
        return _kind(inner[0])[0] if len(inner) == 1 else object, len(inner) < len(get_args(annotation))
    if get_origin(annotation) in (tuple, list):
        return list, False
    return annotation if annotation in (str, int, float) else object, False


def _limits(metadata: list[Any]) -> tuple[float | None, float | None, int | None, bool]:
    low: Any = None
    high: Any = None
    step: Any = None
    open_ends = False
    for each in metadata:
        if isinstance(each, Ge | Gt):
            low, open_ends = (each.ge, False) if isinstance(each, Ge) else (each.gt, True)
        elif isinstance(each, Le | Lt):
            high = each.le if isinstance(each, Le) else each.lt
        elif isinstance(each, MultipleOf):
            step = each.multiple_of
    return low, high, step, open_ends


def _number(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _parse_parts(name: str, text: str) -> list[Any]:
    """Parts are written one a line, each as its short form or as JSON; or as one JSON list."""
    if text.lstrip().startswith("["):
        parts = _json(name, text)
        return list(parts)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return [_json(name, line) if line.startswith("{") else line for line in lines]


def _json(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise BadInput(name, text, "is not valid JSON; check brackets and quotes") from exc
