"""The base of everything that is part of a spec: frozen pydantic dataclasses that raise `BadInput`."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import asdict, fields, is_dataclass, replace
from functools import cache
from operator import attrgetter
from typing import Any, ClassVar, Self

from pydantic import ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import ErrorDetails

from render.errors import BadInput
from render.spec.fields import SpecField, read_field

# Strict: 3.5 is no number of steps, and true no number at all. A whole number is a float where one is wanted.
CONFIG = ConfigDict(
    strict=True, extra="forbid", allow_inf_nan=False, json_schema_extra=lambda schema: _describe(schema)
)


_ATOMS = frozenset({str, int, float, bool, type(None)})


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Checked:
    """A frozen definition. Raises `BadInput` on construction for the first value that cannot be."""

    part_of: ClassVar[str] = ""
    """The field of the spec whose value, or a part of whose value, this is."""

    @model_validator(mode="wrap")
    @classmethod
    def _plainly(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(values)
        except ValidationError as exc:
            details = exc.errors(include_url=False, include_context=False)
        # Not from pydantic's error: whoever prints the cause would print the rest of the values, too.
        raise _bad_input(cls, details)

    @classmethod
    @cache
    def fields(cls) -> tuple[SpecField, ...]:
        """The definition's fields, in its order."""
        infos = cls.__pydantic_fields__  # type: ignore[attr-defined]
        return tuple(read_field(name, info) for name, info in infos.items())

    @classmethod
    def field(cls, name: str) -> SpecField | None:
        """One field by name; None if there is none."""
        return next((field for field in cls.fields() if field.name == name), None)

    @classmethod
    def from_values(cls, values: Any, fix: str) -> Self:
        """From names and values; `fix` says what is wrong with anything else. Raises `BadInput`."""
        if not isinstance(values, Mapping):
            raise BadInput(cls.part_of or "spec", values, fix)
        known = cls._names()
        for key in values:
            if key not in known:
                raise BadInput(cls.part_of or "key", key, f"is unknown; {_nearest(key, known)}")
        return cls(**values)

    def with_changes(self, **changes: Any) -> Self:
        """A new one, checked, with some values replaced."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Names and values, ready for JSON; `from_mapping` reads them again."""
        values = self._reader()(self)
        return {
            name: value if type(value) in _ATOMS else _plain(value)
            for name, value in zip(self._names(), values, strict=True)
        }

    @classmethod
    @cache
    def _names(cls) -> tuple[str, ...]:
        return tuple(field.name for field in fields(cls))

    @classmethod
    @cache
    def _reader(cls) -> Callable[[Checked], tuple[Any, ...]]:
        """Reads the values of all fields at once."""
        names = cls._names()
        return attrgetter(*names) if len(names) > 1 else lambda part: (getattr(part, names[0]),)


def _plain(value: Any) -> Any:
    """As `asdict` has it, which copies each text and number, too, and takes several times as long."""
    if type(value) in _ATOMS:
        return value
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else deepcopy(value)


def _describe(schema: dict[str, Any]) -> None:
    # The rest of a docstring is for those who read the code.
    schema["description"] = " ".join(str(schema.get("description", "")).partition("\n\n")[0].split())


def _bad_input(model: type[Checked], details: list[ErrorDetails]) -> BadInput:
    """The first error as one sentence."""
    error = details[0]
    name = str(error["loc"][0]) if error["loc"] else ""
    path = f"{model.part_of}.{name}" if model.part_of else name
    field, value = model.field(name), error["input"]
    if field is None:
        return BadInput(model.part_of or "key", name, f"is unknown; {_nearest(name, model._names())}")
    if error["type"] == "missing":
        example = f", e.g. {field.examples[0]}" if field.examples else ""
        return BadInput(path, None, f"is missing; give one{example}")
    if error["type"] == "problem":
        return BadInput(path, value, error["msg"])
    return BadInput(path, value, field.problem_with(value))


def _nearest(key: Any, known: tuple[str, ...]) -> str:
    match = difflib.get_close_matches(key[:80], known, n=1) if isinstance(key, str) else []
    return f"did you mean {match[0]}?" if match else f"use one of {', '.join(known)}"
