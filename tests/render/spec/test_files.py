"""Spec files: what YAML can hold that no spec should."""

from pathlib import Path

import pytest

from render.errors import BadInput
from render.spec import Spec, load_yaml, read_spec_file

BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (BOMB + "prompt: *a11", "aliases stand for too much"),
        ("prompt: &a [*a]", "a value holds itself"),
        ("prompt: x\nseed: 2026-13-45", "month must be in 1..12"),
        ("prompt: x\nseed: " + "9" * 5000, "is not valid yaml"),
        ("prompt: \x04", "special characters are not allowed"),
        ("? [a, b]\n: x", "is not valid yaml"),
        ("prompt: !!timestamp x", "is not valid yaml"),
        ("prompt: !!int x", "is not valid yaml"),
        ("prompt: !!float x", "is not valid yaml"),
        ("prompt: " + "[" * 3000, "nested too deeply"),
    ],
)
def test_yaml_that_is_none_is_one_sentence(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "spec.yaml"
    file.write_text(text)
    with pytest.raises(BadInput, match=r"^spec: ") as caught:
        read_spec_file(file)
    assert problem in str(caught.value) and "\n" not in str(caught.value)


def test_aliases_that_stand_for_little_are_taken() -> None:
    assert load_yaml("a: &a {x: 1}\nb: [*a, *a]\nc:\n  <<: *a\n  y: 2") == {
        "a": {"x": 1},
        "b": [{"x": 1}, {"x": 1}],
        "c": {"x": 1, "y": 2},
    }
    assert load_yaml("") is None


@pytest.mark.parametrize("width", [10**5000, "\ud800", [1], 1.5], ids=["digits", "half", "list", "float"])
def test_a_size_beside_any_width_is_one_sentence(width: object) -> None:
    with pytest.raises(BadInput, match=r"^size: '64x64' contradicts width; give one of them$"):
        Spec.from_mapping({"prompt": "x", "size": "64x64", "width": width})


def test_a_value_is_quoted_without_being_written_out() -> None:
    nested: list[object] = ["x"]
    for _ in range(40):
        nested = [nested, nested]
    with pytest.raises(BadInput, match=r"^prompt: ") as caught:
        Spec.from_mapping({"prompt": nested})
    assert len(str(caught.value)) < 200
