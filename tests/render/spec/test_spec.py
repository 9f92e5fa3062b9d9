"""The spec: its digest is the image's identity, wherever its values come from."""

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from render.errors import BadInput
from render.spec import BLENDS, DTYPES, SAMPLERS, Spec, parse_size, read_spec_file

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
SPECS = st.builds(
    Spec,
    prompt=TEXT.filter(str.strip),
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
def test_a_spec_survives_its_own_json(spec: Spec) -> None:
    again = Spec.from_mapping(json.loads(json.dumps(dataclasses.asdict(spec))))
    assert again == spec
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
    assert set(written) == {field.name for field in dataclasses.fields(Spec)} | {"version"}
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


def test_an_unknown_key_names_its_neighbour() -> None:
    with pytest.raises(BadInput, match="did you mean guidance_scale"):
        Spec.from_mapping({"prompt": "x", "guidance-scale": 3})


@given(st.integers(), st.integers())
def test_a_size_is_two_whole_numbers(width: int, height: int) -> None:
    assert parse_size(f"{width}x{height}") == (width, height)


@given(st.text().filter(lambda text: not set(text) & set("0123456789")))
def test_what_is_no_size_gets_a_sentence(text: str) -> None:
    with pytest.raises(BadInput, match="WIDTHxHEIGHT"):
        parse_size(text)
