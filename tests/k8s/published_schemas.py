"""Writes published.json: the schemas of custom resources, as their projects publish them.

    pip download --no-deps --only-binary=:all: --python-version 3.14 cloudcoil-models-keda \
        cloudcoil-models-prometheus-operator
    python -m tests.k8s.published_schemas *.whl

These packages hold pydantic models that are generated from the projects' CRDs. They are read and never run,
so neither their Python nor what they depend on is needed. Only the kinds that we use are kept.
"""

from __future__ import annotations

import ast
import json
import sys
import zipfile
from collections.abc import Iterator
from email import message_from_bytes
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parent / "published.json"
KINDS = {
    "cloudcoil/models/keda/v1alpha1.py": ("ScaledObject",),
    "cloudcoil/models/prometheus_operator/v1.py": ("PodMonitor", "PrometheusRule", "ServiceMonitor"),
}
_SIMPLE: dict[str, dict[str, Any]] = {
    "str": {"type": "string"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
    "Any": {},
    "AwareDatetime": {"type": "string"},
    "ObjectMeta": {"type": "object"},
}
_LIMITS = {
    "ge": "minimum",
    "le": "maximum",
    "gt": "exclusiveMinimum",
    "lt": "exclusiveMaximum",
    "multiple_of": "multipleOf",
    "pattern": "pattern",
}
_LENGTHS = {"min_length": ("minLength", "minItems"), "max_length": ("maxLength", "maxItems")}


def main(wheels: list[str]) -> None:
    """Write the schemas of all kinds that these packages have."""
    found: dict[str, Any] = {"origin": [], "kinds": {}, "definitions": {}}
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as package:
            for name in KINDS.keys() & set(package.namelist()):
                module = _Module(ast.parse(package.read(name)))
                for kind in KINDS[name]:
                    found["kinds"][module.api_version(kind)] = module.reference(kind)
                found["definitions"] |= module.definitions
                found["origin"].append(_origin(package))
    found["origin"].sort(key=lambda each: str(each["package"]))
    TARGET.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _origin(package: zipfile.ZipFile) -> dict[str, str]:
    (name,) = (each for each in package.namelist() if each.endswith(".dist-info/METADATA"))
    metadata = message_from_bytes(package.read(name))
    return {
        "package": f"{metadata['Name']} {metadata['Version']} of PyPI, generated from the project's CRDs",
        "license": str(metadata["License"]),
        "repository": "https://github.com/cloudcoil/cloudcoil",
    }


class _Module:
    """The models of one API version."""

    def __init__(self, tree: ast.Module) -> None:
        self._classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
        self.definitions: dict[str, Any] = {}

    def api_version(self, kind: str) -> str:
        """`GROUP/VERSION KIND`."""
        fields = {name: value for name, _, value in self._fields(kind)}
        return f"{ast.literal_eval(fields['api_version'])} {kind}"

    def reference(self, name: str) -> dict[str, Any]:
        """A reference to a model, which is added to the definitions."""
        if name not in self.definitions:
            self.definitions[name] = {}
            self.definitions[name] = self._model(name)
        return {"$ref": f"#/definitions/{name}"}

    def _model(self, name: str) -> dict[str, Any]:
        node = self._classes[name]
        for base in node.bases:
            if isinstance(base, ast.Subscript) and ast.unparse(base.value) == "RootModel":
                return self._schema(base.slice)
        open_ended = any("extra='allow'" in ast.unparse(each) for each in node.body)
        properties, required = {}, []
        for field, annotation, default in self._fields(name):
            shown, schema = self._field(field, annotation)
            if field == "status":
                continue
            properties[shown] = schema
            is_resource = "Resource" in map(ast.unparse, node.bases)
            if default is None or (is_resource and field in ("api_version", "kind")):
                required.append(shown)
        return {
            "type": "object",
            "properties": properties,
            "required": sorted(required),
            "additionalProperties": open_ended,
        }

    def _fields(self, name: str) -> Iterator[tuple[str, ast.expr, ast.expr | None]]:
        for each in self._classes[name].body:
            if not isinstance(each, ast.AnnAssign) or not isinstance(each.target, ast.Name):
                continue
            if not ast.unparse(each.annotation).startswith("ClassVar"):
                yield each.target.id, each.annotation, each.value

    def _field(self, name: str, annotation: ast.expr) -> tuple[str, dict[str, Any]]:
        """The name of a field in documents, and its schema."""
        for word in _keywords(annotation):
            if word.arg == "alias":
                name = ast.literal_eval(word.value)
        return name, {} if name == "status" else self._schema(annotation)

    def _schema(self, node: ast.expr) -> dict[str, Any]:
        match node:
            case ast.Constant(value=str(text)):
                return self._schema(ast.parse(text, mode="eval").body)
            case ast.Name(id=name) if name in _SIMPLE:
                return dict(_SIMPLE[name])
            case ast.Name(id=name):
                return self.reference(name)
            case ast.BinOp(op=ast.BitOr()):
                parts = [self._schema(each) for each in _alternatives(node)]
                return parts[0] if len(parts) == 1 else {"anyOf": parts}
            case ast.Subscript(value=ast.Name(id="Literal"), slice=values):
                found = ast.literal_eval(values)
                return {"enum": list(found) if isinstance(found, tuple) else [found]}
            case ast.Subscript(value=ast.Name(id="list"), slice=item):
                return {"type": "array", "items": self._schema(item)}
            case ast.Subscript(value=ast.Name(id="dict"), slice=ast.Tuple(elts=[_, value])):
                return {"type": "object", "additionalProperties": self._schema(value)}
            case ast.Subscript(value=ast.Name(id="Annotated"), slice=ast.Tuple(elts=[inner, *_])):
                return self._schema(inner) | _limits(node, self._schema(inner))
        raise SystemExit(f"no rule for {ast.unparse(node)}")


def _alternatives(node: ast.expr) -> Iterator[ast.expr]:
    """The parts of `A | B | None`; a missing value is told by `required`."""
    if isinstance(node, ast.BinOp):
        yield from _alternatives(node.left)
        yield from _alternatives(node.right)
    elif not (isinstance(node, ast.Constant) and node.value is None):
        yield node


def _keywords(annotation: ast.expr) -> list[ast.keyword]:
    """What `Field` is given in an annotation itself, not in one within it."""
    match annotation:
        case ast.Subscript(value=ast.Name(id="Annotated"), slice=ast.Tuple(elts=[_, *more])):
            return [word for call in more if isinstance(call, ast.Call) for word in call.keywords]
    return []


def _limits(node: ast.expr, schema: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for word in _keywords(node):
        name = word.arg or ""
        if name in _LENGTHS:
            name = _LENGTHS[name][schema.get("type") == "array"]
        elif name in _LIMITS:
            name = _LIMITS[name]
        else:
            continue
        found[name] = ast.literal_eval(word.value)
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
