"""Spec files: what YAML can hold that no spec should."""

from pathlib import Path

import pytest

from render.errors import BadInput
from render.models.vae_folder import resolve_vae
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
        ("prompt: x\nseed: 012", "line 2 has 012, another number in YAML"),
        ("prompt: x\nseed: 1:30", "line 2 has 1:30"),
        ("prompt: x\nstrength: 1:30.5", "line 2 has 1:30.5"),
        ("prompt: x\nseed: 1\nseed: 2", "line 3 has 'seed' again"),
        ("prompt: x\nboxes: [{x: 0, x: 1}]", "line 2 has 'x' again"),
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


@pytest.mark.parametrize(
    "text", ["prompt: '012'", 'prompt: "1:30"', "prompt: 0\nseed: 10", "prompt: |\n  012"]
)
def test_text_in_quotes_and_plain_numbers_are_taken(text: str) -> None:
    assert load_yaml(text)["prompt"] is not None


@pytest.mark.parametrize(("name", "text"), [("a.json", '{"prompt": "grün"}'), ("a.toml", 'prompt = "grün"')])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_no_text(tmp_path: Path, name: str, text: str, encoding: str) -> None:
    (tmp_path / name).write_bytes(text.encode(encoding))
    assert read_spec_file(tmp_path / name) == {"prompt": "grün"}


def test_a_name_stands_once_in_json(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"prompt": "x", "seed": 1, "seed": 2}')
    with pytest.raises(BadInput, match="'seed' stands there twice"):
        read_spec_file(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("seed", "1_000", "not a whole number"),
        ("seed", "٣", "not a whole number"),
        ("guidance_scale", "1_0", "not a finite number"),
        ("strength", "0,3", "has a comma; write 0.3"),
    ],
)
def test_a_flag_is_a_number_as_people_write_it(name: str, text: str, problem: str) -> None:
    with pytest.raises(BadInput, match=f"{name}: .*{problem}"):
        Spec.parse({name: text})


FIELDS = ("lora", "embedding", "enlarger", "controlnet", "control", "reference", "ip_adapter", "init", "vae")
PATHS = {
    "home": "~nobody-of-this-name/x",
    "long": "x" * 5000,
    "long with a colon": "22:00-" + "x" * 5000,
    "null": "a\0b",
}


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_a_path_that_can_be_none_is_one_sentence(field: str, path: str) -> None:
    lists = {"control": [f"canny={path}"]} | {
        name: [path] for name in ("lora", "embedding", "controlnet", "reference")
    }
    value = lists.get(field, path)
    with pytest.raises(BadInput, match=f"^{field}: ") as caught:
        resolve_vae(path) if field == "vae" else Spec.from_mapping({"prompt": "x", field: value})
    assert "\n" not in str(caught.value)
