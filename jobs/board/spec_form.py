"""The submit form's fields, from the spec's definition."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from render.spec import GROUPS, Spec, SpecField

_MODES = {int: "numeric", float: "decimal"}


@dataclass(frozen=True, kw_only=True)
class FormField:
    """One field as the template shows it."""

    name: str
    label: str
    hint: str
    value: str
    choices: tuple[str, ...]
    large: bool
    """A box of several lines."""
    required: bool
    input_mode: str
    placeholder: str


@dataclass(frozen=True, kw_only=True)
class FormGroup:
    """Fields under one heading. The first group is shown, the others are folded."""

    title: str
    fields: tuple[FormField, ...]


def form_groups(values: Mapping[str, Any], models: tuple[str, ...]) -> list[FormGroup]:
    """The form, filled with `values`: of a spec, or as entered. `models` are the choices of a model."""
    fields = [field for field in Spec.inputs() if _is_in_form(field)]
    titles = dict.fromkeys([*GROUPS, *(field.shown.group for field in fields)])
    groups = {title: [field for field in fields if field.shown.group == title] for title in titles}
    return [
        FormGroup(title=title, fields=tuple(_form_field(field, values, models) for field in members))
        for title, members in groups.items()
        if members
    ]


def entered_values(form: Mapping[str, Any]) -> dict[str, Any]:
    """What a form gives of a spec; what was left empty keeps its default. Raises `BadInput`."""
    names = [field.name for field in Spec.inputs() if _is_in_form(field)]
    return Spec.parse({name: form[name] for name in names if isinstance(form.get(name), str) and form[name]})


def kept_values(original: Mapping[str, Any], form: Mapping[str, Any]) -> dict[str, Any]:
    """What a variation keeps of the original's spec: every field that the form did not have."""
    shown = set(form) | ({"width", "height"} if "size" in form else set())
    return {name: value for name, value in original.items() if name not in shown and value is not None}


def kept_labels(values: Mapping[str, Any]) -> list[str]:
    """Labels of the fields with a value that a variation keeps and the form does not show."""
    local = [field for field in Spec.inputs() if field.shown.local]
    return [
        field.shown.label.lower() for field in local if values.get(field.name, field.default) != field.default
    ]


def _is_in_form(field: SpecField) -> bool:
    return bool(field.flag) and not field.shown.local


def _form_field(field: SpecField, values: Mapping[str, Any], models: tuple[str, ...]) -> FormField:
    label = f"{field.shown.label} ({field.shown.unit})" if field.shown.unit else field.shown.label
    hint = f"{field.help} One per line." if field.many else field.help
    empty = f"empty: {field.default_text}" if field.optional and field.default_text else ""
    default = "" if field.required else field.default
    example = field.examples[0] if field.examples else ""
    return FormField(
        name=field.name,
        label=label,
        hint=f"{hint} ({empty})" if empty else hint,
        value=field.text(values.get(field.name, default)),
        choices=models if field.name == "model" else tuple(map(str, field.choices)),
        large=field.many or field.shown.long,
        required=field.required,
        input_mode=_MODES.get(field.kind, "text"),
        placeholder="\n".join(example) if isinstance(example, list) else str(example),
    )
