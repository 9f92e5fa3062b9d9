"""The base of everything that is part of a spec: frozen pydantic dataclasses that raise `BadInput`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cache
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
        known = [field.name for field in cls.fields()]
        for key in values:
            if key not in known:
                raise BadInput(cls.part_of or "key", key, f"is unknown; {_nearest(key, known)}")
        return cls(**values)

    def with_changes(self, **changes: Any) -> Self:
        """A new one, checked, with some values replaced."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Names and values, ready for JSON; `from_mapping` reads them again."""
        return asdict(self)


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
        return BadInput(model.part_of or "key", name, f"is unknown; {_nearest(name, _names(model))}")
    if error["type"] == "missing":
        example = f", e.g. {field.examples[0]}" if field.examples else ""
        return BadInput(path, None, f"is missing; give one{example}")
    if error["type"] == "problem":
        return BadInput(path, value, error["msg"])
    return BadInput(path, value, field.problem_with(value))


def _names(model: type[Checked]) -> list[str]:
    return [field.name for field in model.fields()]


def _nearest(key: Any, known: list[str]) -> str:
    match = difflib.get_close_matches(key[:80], known, n=1) if isinstance(key, str) else []
    return f"did you mean {match[0]}?" if match else f"use one of {', '.join(known)}"
