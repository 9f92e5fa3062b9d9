"""The OpenAPI document as a page that needs no scripts."""

from __future__ import annotations

from typing import Any

_ORDER = ("get", "post", "put", "delete")
_BODIES = ("application/json", "multipart/form-data")


def groups(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The operations by tag, each with its method, path, text, parameters and body."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path, methods in document["paths"].items():
        for method in _ORDER:
            if method in methods:
                operation = methods[method]
                found.setdefault(operation["tags"][0], []).append(
                    _operation(document, path, method, operation)
                )
    return [{"name": name, "operations": operations} for name, operations in found.items()]


def _operation(document: dict[str, Any], path: str, method: str, operation: dict[str, Any]) -> dict[str, Any]:
    parameters = [
        {
            "name": given["name"],
            "place": given["in"],
            "type": _type(given["schema"]),
            "text": given.get("description", ""),
            "required": given.get("required", False),
        }
        for given in operation.get("parameters", ())
    ]
    content = operation.get("requestBody", {}).get("content", {})
    body = next((content[kind]["schema"] for kind in _BODIES if kind in content), None)
    return {
        "method": method.upper(),
        "path": path,
        "text": operation.get("description", ""),
        "fields": parameters + (_fields(document, body) if body else []),
    }


def _fields(document: dict[str, Any], schema: dict[str, Any]) -> list[dict[str, Any]]:
    named = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return [
        {
            "name": name,
            "place": "body",
            "type": _type(given),
            "text": given.get("description", ""),
            "required": name in named.get("required", ()),
        }
        for name, given in named["properties"].items()
    ]


def _type(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(
            dict.fromkeys(_type(each) for each in schema["anyOf"] if each.get("type") != "null")
        )
    if "enum" in schema:
        return ", ".join(str(value) for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}"
    return str(schema.get("type", "any"))
