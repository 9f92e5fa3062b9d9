"""JSON schemas (draft 2020-12) of spec files and batch files, for editors and other programs."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from render.spec.spec import Spec

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def spec_schema() -> dict[str, Any]:
    """The schema of a spec file (yaml, json or toml)."""
    made = TypeAdapter(Spec).json_schema()
    return {
        "$schema": DIALECT,
        "title": "Chorale spec",
        "description": made["description"],
        "type": "object",
        "properties": {"$schema": {"type": "string"}} | _properties(made),
        "required": made["required"],
        "additionalProperties": False,
        "$defs": made["$defs"],
    }


def batch_schema() -> dict[str, Any]:
    """The schema of a batch file in yaml: `rows`, and `defaults` for all of them.

    A row may have columns that are not fields of a spec: those that a template names.
    """
    made = TypeAdapter(Spec).json_schema()
    custom_id = {"type": ["string", "number"], "description": "The owner's name for the row, used once."}
    require_tag = {
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
        "description": "Tags that the nodes of its job must have.",
        "examples": ["a100"],
    }
    row = {
        "type": "object",
        "description": "One image: fields of a spec, and columns for the template.",
        "properties": {"custom_id": custom_id, "require_tag": require_tag} | _properties(made),
    }
    return {
        "$schema": DIALECT,
        "title": "Chorale batch",
        "type": "object",
        "properties": {
            "defaults": {"$ref": "#/$defs/Row", "description": "Values for all rows."},
            "rows": {"type": "array", "items": {"$ref": "#/$defs/Row"}, "description": "One item per image."},
        },
        "required": ["rows"],
        "additionalProperties": False,
        "$defs": {"Row": row} | made["$defs"],
    }


def _properties(made: dict[str, Any]) -> dict[str, Any]:
    """All inputs of a spec: its fields, and `size`."""
    found = {}
    for field in Spec.inputs():
        text = {"type": "string", "description": field.help, "default": field.default}
        schema = made["properties"].get(field.name, text | {"examples": list(field.examples)})
        found[field.name] = {"title": field.shown.label} | {k: v for k, v in schema.items() if k != "title"}
    return found
