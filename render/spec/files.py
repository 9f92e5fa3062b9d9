"""Spec files, and the values of several sources put together."""

from __future__ import annotations

import codecs
import contextlib
import json
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from render.errors import BadInput, first_line

MAX_YAML_NODES = 5_000_000
"""Values of a YAML file, with its aliases written out: a batch of 200,000 rows has about so many."""
PICKLES = (".bin", ".pth", ".pt", ".ckpt", ".pkl", ".pickle")
"""Endings of files of weights that can run any code when they are opened; they are refused."""
IMAGE_FIELDS = ("init", "mask")
"""The fields of a spec that name an image file."""
FILE_FIELDS = (*IMAGE_FIELDS, "enlarger", "ip_adapter")
"""Those that name a file of any kind."""
PARTS_OF_FILES = ("lora", "embedding", "control", "controlnet", "reference")
"""The fields with several parts, each of which names a file or a folder."""
_WORDS = (("mask", "alpha"), ("mask", "none"), ("mask", "cutout"), ("enlarger", "builtin"))
"""Values of them that do not."""
_NUMBER_TAGS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_MISREAD = re.compile(r"[-+]?(0[0-7_]+|[\d_]+(:[\d_.]+)+)")
_SIZE_FORM = "is not WIDTHxHEIGHT in pixels; use e.g. 1024x1024"


def read_spec_file(path: Path) -> dict[str, Any]:
    """Names and values from a .json, .yaml, .yml or .toml file; raises `BadInput` when it cannot be read."""
    readers: dict[str, Callable[[str], Any]] = {
        ".json": load_json,
        ".yaml": load_yaml,
        ".yml": load_yaml,
        ".toml": tomllib.loads,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise BadInput("spec", str(path), f"has an unknown ending; use one of {', '.join(readers)}")
    try:
        values = reader(_decoded(path.read_bytes()))
    except OSError as exc:
        raise BadInput("spec", str(path), f"cannot be read ({exc.strerror}); check the path") from exc
    except ValueError as exc:
        reason = first_line(exc, 200)
        raise BadInput("spec", str(path), f"is not valid {path.suffix[1:]} ({reason}); fix the file") from exc
    except RecursionError as exc:
        raise BadInput("spec", str(path), "is nested too deeply; fix the file") from exc
    if not isinstance(values, dict):
        raise BadInput("spec", str(path), "contains no names and values; write e.g. prompt: a red vase")
    # Editors find the schema of a JSON file by this key.
    values.pop("$schema", None)
    return beside(path, values)


def home_path(text: str) -> Path:
    """A path with `~` written out; one of a user that there is not stays as it is."""
    with contextlib.suppress(RuntimeError):
        return Path(text).expanduser()
    return Path(text)


def is_file(path: Path) -> bool:
    """Whether there is such a file; False for what no path can be."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """Whether there is such a folder; False for what no path can be."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def check_exists(field: str, path: Path) -> None:
    """Raise `BadInput` unless `path` is a file on this machine."""
    try:
        there = path.is_file()
    except OSError as exc:
        fix = f"cannot be read ({exc.strerror}); check the path"
        raise BadInput(field, str(path)[:200], fix) from exc
    if not there:
        raise BadInput(field, str(path), "is not a file on this machine; check the path")


def _decoded(data: bytes) -> str:
    """Text in UTF-8, or in UTF-16 as some programs of Windows save it; without a byte order mark."""
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if utf16 else "utf-8-sig")


def load_json(text: str) -> Any:
    """A JSON text; raises `ValueError`, also for a name that an object has twice."""
    return json.loads(text, object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)[:80]!r} stands there twice")
    return values


def load_yaml(text: str) -> Any:
    """The one document of a YAML text, of plain types only (`yaml.safe_load`).

    Raises `ValueError` for what is not valid, for a key that is there twice, for numbers that YAML 1.1 takes
    for others than they look (012 for 10, 1:30 for 90), and for aliases that make much more of it than stands
    there: nine lines of lists of lists can stand for more than any memory holds. Raises `RecursionError`
    where it is nested too deeply.
    """
    try:
        # It reads the text at once, and refuses control characters.
        loader = yaml.SafeLoader(text)
    except yaml.YAMLError as exc:
        raise ValueError(str(exc)) from exc
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _nodes(node, {}) > MAX_YAML_NODES:
            raise ValueError("its aliases stand for too much; write the values out")
        return loader.construct_document(node)
    except (yaml.YAMLError, OverflowError, AttributeError, TypeError) as exc:
        # PyYAML lets errors of the types that it makes pass, of a date out of range for example.
        raise ValueError(str(exc) or type(exc).__name__) from exc
    finally:
        loader.dispose()


def _nodes(node: yaml.Node, known: dict[int, int]) -> int:
    """Nodes of a document with its aliases written out; raises `ValueError` for one that holds itself."""
    found = known.get(id(node))
    if found == 0:
        raise ValueError("a value holds itself; write the values out")
    if found is None:
        known[id(node)] = 0
        parts: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            parts = node.value
        elif isinstance(node, yaml.MappingNode):
            _check_keys(node)
            parts = [part for pair in node.value for part in pair]
        else:
            _check_number(node)
        found = known[id(node)] = 1 + sum(_nodes(part, known) for part in parts)
    return found


def _check_keys(node: yaml.MappingNode) -> None:
    seen = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.value != "<<":
            if (key.tag, key.value) in seen:
                line = key.start_mark.line + 1
                raise ValueError(f"line {line} has {key.value[:80]!r} again; remove one of the two")
            seen.add((key.tag, key.value))


def _check_number(node: yaml.Node) -> None:
    """Refuse octal and sexagesimal numbers, which hardly anybody means."""
    plain = isinstance(node, yaml.ScalarNode) and node.style is None and node.tag in _NUMBER_TAGS
    if plain and _MISREAD.fullmatch(node.value):
        line = node.start_mark.line + 1
        raise ValueError(
            f"line {line} has {node.value}, another number in YAML; put it in quotes if it is text"
        )


def names_file(field: str, value: object) -> bool:
    """Whether a value of a spec's field is the path of a file."""
    if not isinstance(value, str) or field not in FILE_FIELDS or (field, value) in _WORDS:
        return False
    return field != "mask" or not value.startswith("cutout:")


def beside(file: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a file, with its relative paths resolved against the folder it is in."""
    found = dict(values)
    for name in FILE_FIELDS:
        if names_file(name, found.get(name)):
            found[name] = str(file.parent / found[name])
    for name in PARTS_OF_FILES:
        if isinstance(found.get(name), list):
            found[name] = [_beside(file.parent, name, each) for each in found[name]]
    return found


def _beside(folder: Path, field: str, part: Any) -> Any:
    if not isinstance(part, str):
        return part
    kind, sign, path = part.partition("=")
    return f"{kind}={folder / path}" if field == "control" and sign else str(folder / part)


def parse_size(text: str) -> tuple[int, int]:
    """`1536x1024` -> (width, height) in pixels; raises `BadInput` when it is not of that form."""
    width, cross, height = text.lower().replace(" ", "").replace("×", "x").partition("x")
    if not (cross and _is_whole(width) and _is_whole(height)):
        raise BadInput("size", text, _SIZE_FORM)
    return int(width), int(height)


def _is_whole(text: str) -> bool:
    digits = text.removeprefix("-")
    # Longer ones are no size, and int() refuses thousands of digits.
    return digits.isascii() and digits.isdigit() and len(digits) < 1000


def expand_size(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with `size` written as `width` and `height`; raises `BadInput` for one that is none.

    Done for each source of values on its own, so that a source's width wins over the size of the one below.
    """
    expanded = dict(values)
    if "size" not in expanded:
        return expanded
    size = expanded.pop("size")
    if not isinstance(size, str):
        raise BadInput("size", size, _SIZE_FORM)
    width, height = parse_size(size)
    for name, side in (("width", width), ("height", height)):
        if expanded.setdefault(name, side) != side:
            given = expanded[name]
            # Anything may be given for it, of any length.
            shown = f" {given}" if type(given) is int and abs(given) < 10**9 else ""
            raise BadInput("size", size, f"contradicts {name}{shown}; give one of them")
    return expanded
