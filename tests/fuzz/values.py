# ruff: noqa: E501
"""Values that no program expects: numbers without end, texts that are none, structures too deep."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from random import Random
from typing import Any

from render.spec import Spec

TEXTS = (
    "", " ", "\0", "a\0b", "\ud800", "a\udfffb", "\n", "a\r\nb", "\x1b[31mred\x1b[0m", "[/b]", "[bold", "{x}", "{", "}",
    "%s", "%00", "../../etc/passwd", "/", "//", "\\", "-1", "+1", "1e999", "nan", "inf", "0x10", "1_000", "٣", "１２",
    "true", "null", "none", "auto", "x" * 300, "x" * 70_000, "é" * 200, "🎨" * 50, "\u202eabc", "a\u0000", "9" * 5000,
    "-" + "9" * 5000, "1" * 400 + ".5", "100x100", "8x8", "0x0", "-8x8", "99999999999x8", "1024x1024", "16x16",
    "0,0,1,1: a vase", "0,0,0.5,1", "nan,0,1,1: x", "1e400,0,1,1: x", "lawn: a,b,,", "lawn", ":", "a:b:c", ",,,,,",
    "http://[", "http://[::1", "file:///etc/passwd", "~", "~nobody/x", "C:\\x", "a/" * 400, "2026-13-45", "2026-11-29",
    "0001-01-01T00:00+23:59", "9999-12-31T23:59-23:59", "22:00-07:00 Europe", "22:00-07:00 Europe/Paris", "25:61-00:00",
    "22:00-07:00 ../../etc/passwd", "22:00-07:00 " + "x" * 300, "٢٢:00-07:00", "<script>", "'; drop table jobs; --",
)  # fmt: skip
NUMBERS: tuple[Any, ...] = (
    0, -1, 1, 2, 7, 8, 16, 64, 100, 256, 1000, 1024, 131_072, 131_080, 2**31 - 1, 2**31, 2**63 - 1, 2**63, 2**64,
    -(2**63) - 1, 10**400, -(10**400), 10**5000, 0.0, -0.0, 0.1, 0.5, 1.0, 1.5, -1.5, 1e-320, 1e308, float("inf"),
    float("-inf"), float("nan"), True, False,
)  # fmt: skip
_OTHERS: tuple[Any, ...] = (
    None,
    b"bytes",
    dt.date(1, 1, 1),
    dt.datetime(9999, 12, 31, 23, 59, tzinfo=dt.UTC),
    dt.timedelta(days=1),
    {1, 2},
    frozenset(),
    object(),
    int,
    1j,
    range(5),
)


def deep(depth: int, as_list: bool) -> Any:
    """Lists or mappings inside each other."""
    value: Any = "x"
    for _ in range(depth):
        value = [value] if as_list else {"a": value}
    return value


_DEEP = tuple(deep(depth, as_list) for depth in (50, 1000, 20_000) for as_list in (True, False))


def text(random: Random) -> str:
    """Any text, often a nasty one."""
    roll = random.random()
    if roll < 0.6:
        return random.choice(TEXTS)
    if roll < 0.8:
        return random.choice(TEXTS) + random.choice(TEXTS)
    return "".join(chr(random.choice((random.randrange(128), random.randrange(0x11000)))) for _ in range(9))


def value(random: Random, depth: int = 0) -> Any:
    """Any value of Python."""
    roll = random.random()
    if roll < 0.35:
        return text(random)
    if roll < 0.6:
        return random.choice(NUMBERS)
    if roll < 0.7:
        return random.choice(_OTHERS)
    if depth == 3:
        return None
    if roll < 0.74:
        return random.choice(_DEEP) if depth == 0 else []
    if roll < 0.87:
        return [value(random, depth + 1) for _ in range(random.choice((0, 1, 2, 5)))]
    return {key(random): value(random, depth + 1) for _ in range(random.choice((0, 1, 3)))}


def json_value(random: Random, depth: int = 0) -> Any:
    """Any value that JSON holds."""
    found = value(random, depth)
    return as_json(found)


def as_json(found: Any) -> Any:
    if isinstance(found, dict):
        return (
            {
                str(name)[:100] if not isinstance(name, str) else name: as_json(each)
                for name, each in found.items()
            }
            if _shallow(found)
            else {}
        )
    if isinstance(found, list | tuple):
        return [as_json(each) for each in found] if _shallow(found) else []
    return found if found is None or isinstance(found, str | int | float | bool) else "other"


def _shallow(found: Any, limit: int = 60) -> bool:
    while isinstance(found, list | dict) and len(found) == 1 and limit:
        found, limit = next(iter(found.values() if isinstance(found, dict) else found)), limit - 1
    return limit > 0


def key(random: Random) -> Any:
    """A name that means something, or nearly so, or anything that may be a key."""
    roll = random.random()
    if roll < 0.6:
        return random.choice(FIELDS)
    if roll < 0.75:
        name = random.choice(FIELDS)
        return random.choice((name.upper(), name + "s", name.replace("_", "-"), name[:-1], " " + name))
    if roll < 0.9:
        return text(random)
    return random.choice((None, 1, 2.5, True, (), (1, 2), b"x", frozenset(), dt.date(2026, 1, 1)))


FOLDER = Path("/nowhere")
"""A folder that nothing is written to."""
FIELDS = tuple(field.name for field in Spec.inputs())
_GOOD: dict[str, tuple[Any, ...]] = {
    "prompt": ("a red vase", "x", "a vase, a table, " * 40),
    "negative_prompt": ("", "blurry"),
    "width": (8, 64, 128, 256, 1024, 4096, 16_384, 131_072),
    "height": (8, 64, 128, 256, 1024, 4096, 16_384, 131_072),
    "seed": (0, 7, 2**63 - 1),
    "steps": (1, 2, 25, 1000),
    "guidance_scale": (None, 0.0, 1, 5.0, 100),
    "refiner_start": (0.5, 0.999),
    "strength": (0.01, 0.3, 1.0),
    "variation": (0, 3, 2**31 - 1),
    "window_batch": (None, 1, 3, 256),
    "quality": (1, 100),
    "boxes": (["0,0,0.5,1: a vase"], [{"prompt": "x", "x": 0.1, "y": 0, "width": 0.5, "height": 1}], []),
    "tile_set": (
        ["a: x,x,,", "b: x,x,,"],
        [{"name": "a", "left": 1, "right": 1}],
        ["lawn: a,b,,", "path: b,a,,"],
        [],
    ),
    "size": ("64x64", "1024x512", "4096x4096", "131072x8"),
}
"""Values that may be taken; a field that is not here has choices or anything between its limits."""


def good(random: Random, name: str) -> Any:
    """A value that the field may take."""
    if name in _GOOD:
        return random.choice(_GOOD[name])
    field = next(each for each in Spec.inputs() if each.name == name)
    if field.choices:
        return random.choice(field.choices)
    return field.default


def spec_values(random: Random) -> Any:
    """Names and values of a spec: mostly good ones, a few that are not, now and then nothing of the kind."""
    if random.random() < 0.03:
        return value(random)
    names = random.sample(FIELDS, random.randrange(8))
    values: dict[Any, Any] = {"prompt": "a red vase"} if random.random() < 0.9 else {}
    values |= {name: good(random, name) for name in names}
    for _ in range(random.choice((0, 0, 1, 1, 2))):
        values[key(random)] = value(random)
    return values
