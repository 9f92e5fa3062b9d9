"""YAML batch files: `rows:`, a list, and `defaults:` for all rows. Scalars stay as they are written.

YAML 1.1 takes `no` for false, `0510` for 328 and `1:30` for 90; a product feed means the text. Here every
scalar is text, which the fields of a spec parse as they parse a cell; only null is nothing. Rows are built
from the parser's events one by one, so that a long file needs no more memory than its longest row.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import yaml
from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
    StreamStartEvent,
)

from jobs.intake.encoding import find_encoding
from jobs.intake.raw_rows import RawRow, Reading, Table, not_names_and_values, refuse_row
from jobs.intake.template import fold
from render.errors import BadInput

_NULLS = ("", "~", "null", "Null", "NULL")
_NUMBER = re.compile(r"-?(0|[1-9]\d{0,30})(\.\d{1,30})?", re.ASCII)
_MAX_DEPTH = 20
_MAX_NODES = 20_000
"""In one row, aliases written out: a few lines of aliases can stand for more than any memory holds."""
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def open_yaml(reading: Reading, files: ExitStack) -> Table:
    """Read the defaults and find the rows; `files` closes the file. Raises `BadInput` and `OSError`."""
    encoding = find_encoding(reading.path, reading.encoding)
    defaults, anchors = _Document(reading, encoding.codec).read_keys()
    rows = _Document(reading, encoding.codec).read_rows(defaults, anchors)
    files.callback(rows.close)
    return Table(rows=rows, notes=[encoding.note] if encoding.note else [])


class _Document:
    """One pass over the events of a file."""

    def __init__(self, reading: Reading, codec: str) -> None:
        self._reading, self._codec = reading, codec
        self._path = str(reading.path)
        self._anchors: dict[str, Any] = {}
        self._nodes = 0

    def read_keys(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The defaults, and the anchors of the values before and in them; rows are passed over."""
        defaults: dict[str, Any] | None = None
        rows = False
        with self._events() as events:
            for key in self._keys(events):
                if key == "rows":
                    if rows:
                        raise BadInput("batch", self._path, "has rows twice; write one list")
                    if not isinstance(next(events), SequenceStartEvent):
                        raise self._no_rows()
                    rows = True
                    _skip(events)
                elif key == "defaults":
                    self._nodes = 0
                    found = self._value(events, next(events), 0)
                    defaults = {} if found is None else found
                    if not isinstance(defaults, dict):
                        raise BadInput("defaults", found, "is not names and values; write e.g. {steps: 20}")
                else:
                    raise BadInput("key", key, "is unknown in a batch; use defaults and rows")
        if not rows:
            raise self._no_rows()
        return defaults or {}, self._anchors

    def read_rows(self, defaults: dict[str, Any], anchors: dict[str, Any]) -> Generator[RawRow]:
        self._anchors = dict(anchors)
        with self._events() as events:
            for key in self._keys(events):
                begin = next(events)
                if key != "rows":
                    if isinstance(begin, SequenceStartEvent | MappingStartEvent):
                        _skip(events)
                    continue
                while not isinstance(event := next(events), SequenceEndEvent):
                    yield _line(event), self._row(events, event, defaults)

    def _row(self, events: Iterator[Event], event: Event, defaults: dict[str, Any]) -> Any:
        self._nodes = 0
        problem: list[BadInput] = []
        value = self._value(events, event, 0, problem)
        if problem:
            return problem[0]
        if not isinstance(value, dict):
            return not_names_and_values()
        own = {fold(name) for name in value} if defaults else set()
        return {name: each for name, each in defaults.items() if fold(name) not in own} | value

    @contextmanager
    def _events(self) -> Iterator[Iterator[Event]]:
        """The parser's events; its errors become `BadInput`."""
        with self._reading.path.open(encoding=self._codec) as file:
            loader = _Loader(file)
            try:
                yield iter(loader.get_event, None)
            except (yaml.YAMLError, StopIteration) as exc:
                mark = getattr(exc, "problem_mark", None)
                where = "" if mark is None else f" in line {mark.line + 1}"
                reason = getattr(exc, "problem", None) or str(exc).splitlines()[0]
                raise BadInput("batch", self._path, f"is not valid YAML{where} ({reason})") from exc
            except (ValueError, RecursionError) as exc:
                raise BadInput("batch", self._path, "contains a value that cannot be read; fix it") from exc
            finally:
                loader.dispose()

    def _keys(self, events: Iterator[Event]) -> Iterator[str]:
        """The keys of the document's mapping; the caller takes the events of each value."""
        while isinstance(event := next(events), StreamStartEvent | DocumentStartEvent):
            pass
        if not isinstance(event, MappingStartEvent):
            raise self._no_rows()
        while not isinstance(event := next(events), MappingEndEvent):
            if not isinstance(event, ScalarEvent):
                raise self._no_rows()
            yield event.value
        if not isinstance(next(events), StreamEndEvent) and isinstance(next(events), DocumentStartEvent):
            raise BadInput("batch", self._path, "has several documents; write one with all rows")

    def _value(
        self, events: Iterator[Event], event: Event, depth: int, problem: list[BadInput] | None = None
    ) -> Any:
        """The value that begins with `event`. A problem of a row is noted, so that the rest is still read."""
        self._nodes += 1
        if depth > _MAX_DEPTH or self._nodes > _MAX_NODES:
            raise BadInput("batch", self._path, f"is nested too deeply near line {_line(event)}")
        if isinstance(event, ScalarEvent):
            value = _scalar(event, depth)
        elif isinstance(event, AliasEvent):
            return self._alias(event)
        elif isinstance(event, SequenceStartEvent):
            value = []
            while not isinstance(each := next(events), SequenceEndEvent):
                value.append(self._value(events, each, depth + 1, problem))
        else:
            value = self._mapping(events, depth, problem)
        anchor = getattr(event, "anchor", None)
        if anchor:
            self._anchors[anchor] = value
        return value

    def _mapping(self, events: Iterator[Event], depth: int, problem: list[BadInput] | None) -> Any:
        value: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        while not isinstance(event := next(events), MappingEndEvent):
            key = self._value(events, event, depth + 1, problem)
            each = self._value(events, next(events), depth + 1, problem)
            if key == "<<":
                for part in each if isinstance(each, list) else [each]:
                    merged = (part if isinstance(part, dict) else {}) | merged
            elif not isinstance(key, str) or key in value:
                fix = (
                    f"names {str(key)[:80]!r} twice; rename one" if isinstance(key, str) else "has a bad key"
                )
                if problem is None:
                    raise BadInput("defaults", None, fix)
                problem.append(refuse_row(fix))
            else:
                value[key] = each
        return merged | value

    def _alias(self, event: AliasEvent) -> Any:
        anchor = str(event.anchor)
        if anchor not in self._anchors:
            raise BadInput("batch", self._path, f"names an unknown anchor, {anchor[:80]}")
        value = self._anchors[anchor]
        self._nodes += _size(value, _MAX_NODES)
        if self._nodes > _MAX_NODES:
            line = _line(event)
            raise BadInput("batch", self._path, f"has aliases for too many values in line {line}; write less")
        return value

    def _no_rows(self) -> BadInput:
        return BadInput("batch", self._path, "has no list of rows; write rows: and one item per image")


def _line(event: Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 0


def _scalar(event: ScalarEvent, depth: int) -> Any:
    """A scalar as it is written. Inside of a value, as in a region prompt, numbers are numbers as in JSON."""
    if not event.implicit[0]:
        return event.value
    if event.value in _NULLS:
        return None
    if depth > 1 and _NUMBER.fullmatch(event.value):
        return json.loads(event.value)
    return event.value


def _skip(events: Iterator[Event]) -> None:
    """Pass over the rest of a list or of names and values whose beginning was taken."""
    depth = 1
    while depth:
        event = next(events)
        if isinstance(event, SequenceStartEvent | MappingStartEvent):
            depth += 1
        elif isinstance(event, SequenceEndEvent | MappingEndEvent):
            depth -= 1


def _size(value: Any, limit: int) -> int:
    """Values in a value, up to `limit`."""
    rest, count = [value], 0
    while rest and count <= limit:
        each = rest.pop()
        count += 1
        rest.extend(each.values() if isinstance(each, dict) else each if isinstance(each, list) else ())
    return count
