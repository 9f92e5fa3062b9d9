"""Names of files in values of a spec are found and replaced, whatever is said of them."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.intake.named_files import replace_names
from render.errors import BadInput

FILES = {"a.png", "photos/b.png", "x.safetensors", "odd:0.5", "~/c.png"}


def found(field: str, name: str) -> str | None:
    return f"/sent/{name.rpartition('/')[2]}" if name in FILES else None


@pytest.mark.parametrize(
    ("field", "value", "replaced"),
    [
        ("init", "a.png", "/sent/a.png"),
        ("init", " photos/b.png ", "/sent/b.png"),
        ("mask", "alpha", "alpha"),
        ("mask", "cutout:u2net", "cutout:u2net"),
        ("mask", "a.png", "/sent/a.png"),
        ("enlarger", "x.safetensors", "/sent/x.safetensors"),
        ("lora", ["x.safetensors", "x.safetensors:0.5"], ["/sent/x.safetensors", "/sent/x.safetensors:0.5"]),
        ("lora", ["odd:0.5", "odd:0.5:0.25"], ["/sent/odd:0.5", "/sent/odd:0.5:0.25"]),
        (
            "lora",
            [{"path": "x.safetensors", "weight": 2.0}],
            [{"path": "/sent/x.safetensors", "weight": 2.0}],
        ),
        ("embedding", ["x.safetensors:<vase>"], ["/sent/x.safetensors:<vase>"]),
        ("control", ["canny=a.png:0.8:0-0.6"], ["canny=/sent/a.png:0.8:0-0.6"]),
        ("prompt", "a.png", "a.png"),
        ("steps", 20, 20),
    ],
)
def test_names_are_replaced(field: str, value: Any, replaced: Any) -> None:
    assert replace_names(field, value, found, "is missing") == replaced


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("init", "gone.png"),
        ("init", {"path": "/etc/passwd", "digest": "0" * 64}),
        ("enlarger", {"path": "/etc/passwd", "digest": "0" * 64}),
        ("lora", ["gone.safetensors:0.5"]),
        ("lora", "x.safetensors"),
        ("lora", [7]),
        ("lora", [{"path": "x.safetensors", "digest": "0" * 64}]),
        ("lora", [{"path": "/etc/passwd"}]),
        ("control", ["a.png"]),
        ("controlnet", ["/etc"]),
    ],
)
def test_what_names_no_known_file_is_refused(field: str, value: Any) -> None:
    """A path with a digest would be read on the board's machine."""
    with pytest.raises(BadInput, match=f"^{field}: .*is missing"):
        replace_names(field, value, found, "is missing")
