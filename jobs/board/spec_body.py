"""The body of a REST request that submits an image: the fields of the spec, as its definition has them."""

from __future__ import annotations

from typing import Annotated, Any, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, SkipValidation, create_model

from render.spec import Spec, SpecField


def _fields() -> dict[str, Any]:
    hints = get_type_hints(Spec, include_extras=True)
    found: dict[str, Any] = {}
    for field in Spec.inputs():
        if not field.shown.local:
            # Shown in the OpenAPI document with its limits, and checked by the spec itself, so that a body, a
            # flag and a row of a batch get the same answer.
            checked_later = Annotated[hints.get(field.name, str), SkipValidation]  # type: ignore[valid-type]
            found[field.name] = (checked_later, _default(field))
    return found


def _default(field: SpecField) -> Any:
    if field.required:
        return ...
    if field.name == "size":
        return Field(field.default, description=field.help, examples=list(field.examples))
    return field.default


SpecBody: type[BaseModel] = create_model("SpecBody", __config__=ConfigDict(extra="forbid"), **_fields())
"""Every field of the spec that does not name a file of the caller's machine."""


def spec_values(body: BaseModel) -> dict[str, Any]:
    """What a body gives of a spec; null stands for the default. Raises `BadInput`."""
    own = {field.name for field in Spec.inputs()}
    given = {name: getattr(body, name) for name in body.model_fields_set & own}
    return Spec.parse({name: value for name, value in given.items() if value is not None})
