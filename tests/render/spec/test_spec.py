"""The spec: its digest is the image's identity, and junk is refused with one sentence."""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from render.errors import BadInput
from render.spec import BLENDS, DTYPES, SAMPLERS, Spec, parse_size, read_spec_file
from render.spec.fields import is_blank
from render.spec.prompt_text import clean

# Without the signs that begin a notation of other programs, which is answered.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0_<([{-\uff08"))
SPECS = st.builds(
    Spec,
    prompt=TEXT.filter(lambda text: not is_blank(clean(text))),
    negative_prompt=TEXT,
    width=st.integers(1, 2000).map(lambda side: side * 8),
    height=st.integers(1, 2000).map(lambda side: side * 8),
    seed=st.integers(0, 2**63 - 1),
    steps=st.integers(1, 1000),
    guidance_scale=st.floats(0, 100),
    sampler=st.sampled_from(SAMPLERS),
    blend=st.sampled_from(BLENDS),
    dtype=st.sampled_from(DTYPES),
    format=st.sampled_from(["png", "jpeg"]),
)


@given(SPECS)
def test_a_spec_is_written_as_its_dataclass_is(spec: Spec) -> None:
    left_out = {field.name for field in Spec.fields() if field.shown.late}
    whole = {name: value for name, value in asdict(spec).items() if name not in left_out}
    assert spec.to_dict() == whole and list(spec.to_dict()) == list(whole)


def test_the_parts_of_a_spec_are_copies() -> None:
    box = {"prompt": "a jug", "x": 0.0, "y": 0.0, "width": 0.5, "height": 1.0}
    spec = Spec.from_mapping({"prompt": "a shelf", "boxes": [box], "size": "256x256"})
    assert spec.to_dict()["boxes"] == asdict(spec)["boxes"] and isinstance(spec.to_dict()["boxes"][0], dict)
    spec.to_dict()["boxes"][0]["prompt"] = "a cup"
    assert spec.boxes[0].prompt == "a jug"


@given(SPECS)
def test_a_spec_survives_its_own_json(spec: Spec) -> None:
    again = Spec.from_mapping(json.loads(json.dumps(spec.to_dict())))
    assert again == spec and hash(again) == hash(spec)
    assert again.canonical_json("m") == spec.canonical_json("m")
    assert again.digest("m") == spec.digest("m")


@given(SPECS, st.data())
def test_every_value_is_part_of_the_digest(spec: Spec, data: st.DataObject) -> None:
    other = data.draw(SPECS)
    assert (spec.digest("m") == other.digest("m")) == (spec == other)
    assert spec.digest("m") != spec.digest("n")


def test_the_digest_is_fixed() -> None:
    """A change here makes every image that is published a stranger: raise DIGEST_VERSION knowingly."""
    assert Spec(prompt="a red vase").digest("model") == (
        "34c26a2ec08248926e428d8c1558860a019905cd47e90bcb52fcfbe852ac6caa"
    )


@pytest.mark.parametrize("text", ["a\0vase", "half a pair \ud83d"])
def test_what_is_no_text_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="not text"):
        Spec(prompt=text)


def test_defaults_are_written_out() -> None:
    spec = Spec(prompt="a red vase")
    written = json.loads(spec.canonical_json("digest of the weights"))
    shown = {field.name for field in Spec.fields() if not field.shown.late}
    assert set(written) == shown | {"version"}
    assert written["model"] == "digest of the weights"


def test_all_kinds_of_files_give_the_same_spec(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("prompt: a red vase\nguidance_scale: 2\nseed: 7\n")
    (tmp_path / "a.json").write_text('{"seed": 7, "guidance_scale": 2.0, "prompt": "a red vase"}')
    (tmp_path / "a.toml").write_text('seed = 7\nguidance_scale = 2.0\nprompt = "a red vase"\n')
    specs = {Spec.from_mapping(read_spec_file(path)) for path in tmp_path.iterdir()}
    assert len(specs) == 1


@pytest.mark.parametrize("path", sorted(Path("examples").glob("*.yaml")), ids=lambda path: path.name)
def test_the_examples_are_specs(path: Path) -> None:
    Spec.from_mapping(read_spec_file(path))


def test_an_unknown_key_names_the_nearest_one() -> None:
    with pytest.raises(BadInput, match="did you mean guidance_scale"):
        Spec.from_mapping({"prompt": "x", "guidance-scale": 3})


@given(st.integers(), st.integers())
def test_a_size_is_two_whole_numbers(width: int, height: int) -> None:
    assert parse_size(f"{width}x{height}") == (width, height)


@given(st.text().filter(lambda text: not set(text) & set("0123456789")))
def test_what_is_no_size_gets_a_sentence(text: str) -> None:
    with pytest.raises(BadInput, match="WIDTHxHEIGHT"):
        parse_size(text)


def test_a_size_stands_for_width_and_height() -> None:
    spec = Spec.from_mapping({"prompt": "x", "size": "512 × 256"})
    assert (spec.width, spec.height) == (512, 256)
    with pytest.raises(BadInput, match="size: '512x256' contradicts width 64"):
        Spec.from_mapping({"prompt": "x", "size": "512x256", "width": 64})


NUMBERS = st.one_of(
    st.booleans(),
    st.integers(),
    st.sampled_from([10**400, -(10**400), 2**63, 2**31]),
    # Python does not print it, nor must a test's name.
    st.just(5000).map(lambda digits: 10**digits),
    st.floats(),
    st.sampled_from([float("nan"), float("inf"), -0.0, 1e308]),
)
TEXTS = st.one_of(
    st.text(), st.text(st.characters(categories=["Cs"])), st.sampled_from(["\0", "\ud83d", "x" * 10_000])
)
FORMS = st.sampled_from(
    [
        "0,0,1,1: a vase",
        "0,0,nan,1: x",
        "a: x,y",
        "a: x,x",
        ": ,",
        "lawn",
        "64x64",
        "1" * 5000 + "x8",
        "/tmp",
        ".",
    ]
)
KEYS = st.one_of(
    st.sampled_from(
        ["prompt", "x", "y", "width", "height", "weight", "feather", "name", "left", "top", "path"]
    ),
    TEXTS,
    st.integers(),
    st.none(),
)
JUNK = st.recursive(
    st.one_of(st.none(), NUMBERS, TEXTS, FORMS, st.binary(), st.just(object)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=8,
)
NAMES = [field.name for field in Spec.inputs()]


def read(value: Any) -> None:
    """Read a value as a spec; whatever is wrong with it must be one sentence."""
    sentence = sentence_of(lambda: Spec.from_mapping(value))
    assert "\n" not in sentence and len(sentence) < 1500
    assert sentence.encode() is not None


def sentence_of(make: Callable[[], Any]) -> str:
    try:
        make()
    except BadInput as exc:
        return str(exc)
    return ""


@given(JUNK)
def test_junk_is_refused_with_a_sentence(junk: Any) -> None:
    read(junk)


@given(st.sampled_from(NAMES), JUNK)
def test_junk_as_one_value_is_refused_with_a_sentence(name: str, junk: Any) -> None:
    read({"prompt": "a vase"} | {name: junk})


@given(st.dictionaries(st.sampled_from(NAMES), JUNK, max_size=6))
def test_junk_as_several_values_is_refused_with_a_sentence(junk: dict[str, Any]) -> None:
    read(junk)


@given(st.sampled_from(["boxes", "tile_set"]), st.lists(JUNK, max_size=3))
def test_junk_as_parts_is_refused_with_a_sentence(name: str, junk: list[Any]) -> None:
    read({"prompt": "a vase"} | {name: junk})


@given(st.dictionaries(st.sampled_from(["path", "digest", "width", "height"]), JUNK))
def test_junk_as_a_stored_init_image_is_refused_with_a_sentence(junk: dict[str, Any]) -> None:
    read({"prompt": "a vase", "init": junk})


@given(
    st.sampled_from(NAMES), TEXTS | FORMS | st.sampled_from(["[", "{", "[" * 100_000, "9" * 5000, "1e999"])
)
def test_junk_as_text_is_refused_with_a_sentence(name: str, text: str) -> None:
    sentence = sentence_of(lambda: Spec.parse({name: text}))
    assert not sentence or sentence.startswith(f"{name}: ")
    if not sentence:
        read({"prompt": "a vase"} | Spec.parse({name: text}))


def test_deep_nesting_is_refused_with_a_sentence() -> None:
    deep: Any = "x"
    for _ in range(sys.getrecursionlimit() * 2):
        deep = [deep]
    for name in NAMES:
        read({"prompt": "a vase"} | {name: deep})
        read({"prompt": "a vase"} | {name: {"prompt": deep, "x": deep}})
    read({"prompt": "a vase", "boxes": [deep, {"prompt": deep}]})


@pytest.mark.parametrize("name", ["steps", "guidance_scale", "strength", "window_batch", "seed", "tile_size"])
def test_a_truth_value_is_not_a_number(name: str) -> None:
    with pytest.raises(BadInput, match=f"{name}: True"):
        Spec.from_mapping({"prompt": "a vase", name: True})


@given(SPECS)
def test_a_field_s_text_is_read_as_its_value(spec: Spec) -> None:
    texts = {field.name: field.text(spec.to_dict().get(field.name, field.default)) for field in Spec.fields()}
    given = {name: text for name, text in texts.items() if text}
    assert Spec.from_mapping(Spec.parse(given)) == spec
