"""Prompts as people write them: cleaned, answered, weighted."""

from __future__ import annotations

import unicodedata
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from render.errors import BadInput
from render.output.encode import xmp
from render.spec import Spec, prompt_text
from render.spec.prompt_text import clean, has_weights, weighted_parts


@given(st.text(st.characters(exclude_categories=("Cs",))))
def test_a_cleaned_prompt_is_well_formed_xml_and_stays_as_it_is(text: str) -> None:
    cleaned = clean(text)
    assert clean(cleaned) == cleaned == unicodedata.normalize("NFC", cleaned)
    packet = xmp(cleaned).decode()
    ElementTree.fromstring(packet[packet.index("?>") + 2 : packet.rindex("<?")])


def test_invisible_characters_are_removed_and_those_of_languages_stay() -> None:
    assert Spec(prompt="a\x01 red\x0bvase\ufffe \u202eesav").prompt == "a red\nvase esav"
    for kept in ("👩‍🍳 a cook", "إناء أحمر", "tab\tand\nline", "rtl \u200f mark"):
        assert Spec(prompt=kept).prompt == kept
    for blank in ("\x01\u202e", "\u200b", " \u00ad\u2060"):
        with pytest.raises(BadInput, match="is empty"):
            Spec(prompt=blank)
    assert Spec(prompt="a\u00a0red\u202fvase") == Spec(prompt="a red vase")


def test_one_word_has_one_identity() -> None:
    composed, decomposed = (unicodedata.normalize(form, "crème") for form in ("NFC", "NFD"))
    assert Spec(prompt=composed).digest("m") == Spec(prompt=decomposed).digest("m")


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("a vase <lora:brand:0.8>", r"--lora brand\.safetensors:0\.8"),
        ("a vase <lora:brand>", r"--lora brand\.safetensors:1"),
        ("a __color__ vase", r"write \{red\|blue\}"),
        ("a vase BREAK on marble", "leave it out"),
        ("a vase AND a mug", "write and"),
        ("embedding:easynegative, a vase", r"--embedding easynegative\.safetensors"),
        ("a vase <wildcard:color>", "is not read here"),
        ("{2$$red|blue} vase", "without a number"),
        ("a [red:blue:0.5] vase", "do not change between steps"),
        ("a [vase:0.8]", r"write e\.g\. \(glaze:0\.8\)"),
        ("a [red|blue] vase", "do not change between steps"),
        ("a (vase:1,3)", r"write it as \(glaze:1\.3\)"),
        ("a （vase：1.3）", r"write it as \(glaze:1\.3\)"),
        ("a (vase:1.3, red", "without its closing parenthesis"),
        ("a vase --ar 16:9", "an option of another program"),
        ("a (vase:99)", "0 to 5"),
        ("a (vase:-1)", "0 to 5"),
        ("a (vase:1.2.3)", "0 to 5"),
        ("(a (vase:2):4)", "0 to 5"),
    ],
)
@pytest.mark.parametrize("field", ["prompt", "negative_prompt", "boxes"])
def test_what_other_programs_read_is_answered(prompt: str, answer: str, field: str) -> None:
    value = [f"0,0,0.5,1: {prompt}"] if field == "boxes" else prompt
    with pytest.raises(BadInput, match=answer) as caught:
        Spec.from_mapping({"prompt": "x", field: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "prompt",
    [
        *("a vase (blue)", "a [red] vase", "it is 1:2", "(a: b)", r"\(a:1.2\)", "BREAKfast", "[1] one | two"),
        *(
            "SALT AND PEPPER",
            "a sign SALT AND PEPPER",
            "at 12:30",
            "a vase - red -- old",
            "5 < 6 > 4",
            r"\[a|b\]",
        ),
    ],
)
def test_prompts_without_a_number_are_letters(prompt: str) -> None:
    assert not has_weights(prompt)
    assert Spec(prompt=prompt).prompt == prompt


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("a (red:1.3) vase", [("a ", 1.0), ("red", 1.3), (" vase", 1.0)]),
        ("(a (b:2):0.5)", [("a ", 0.5), ("b", 1.0)]),
        ("(a) [b] (c:1.5)", [("a", 1.1), (" ", 1.0), ("b", 1 / 1.1), (" ", 1.0), ("c", 1.5)]),
        (r"\(a\) (b:1.2)", [("(a) ", 1.0), ("b", 1.2)]),
        ("a) (b:1.2) (c", [("a) ", 1.0), ("b", 1.2), (" ", 1.0), ("c", 1.0)]),
        ("a: b (c:1.2)", [("a: b ", 1.0), ("c", 1.2)]),
    ],
)
def test_weights_of_parts(prompt: str, parts: list[tuple[str, float]]) -> None:
    found = weighted_parts(prompt)
    assert "".join(text for text, _ in found) == "".join(text for text, _ in parts)
    spread = [weight for text, weight in found for _ in text]
    assert spread == pytest.approx([weight for text, weight in parts for _ in text])


@given(st.text("ab ()[]:.12\\", max_size=40))
def test_any_parentheses_are_read(prompt: str) -> None:
    found = weighted_parts(prompt)
    assert all(text for text, _ in found)


_PIECES = st.sampled_from(
    [
        *("<lora:a:0.8>", "<ti:a>", "__animal__", "BREAK", "a AND b", "embedding:a", "{2$$a|b}", "[a:b:0.5]"),
        *("[a|b]", "(a:1.3)", "(a\uff1a1.3\uff09", "\uff08a:1.3\uff09", "(a:1.3", "--ar 16:9", "--no"),
        *("vase", " ", "\t", "\x0b", "\x7f", "\u202e", "\u00a0", "e\u0301", "<", "(", "[", "{", "_", "-"),
        *("AND", "BREAKFAST", ":1.3)"),
    ]
)
"""What may be answered, and pieces of it."""


@given(st.lists(_PIECES, max_size=6).map("".join) | st.text(max_size=30))
def test_a_prompt_without_any_mark_has_nothing_to_answer(text: str) -> None:
    """Most prompts have none, and nothing else is looked for in them."""
    if prompt_text._MARKS.search(text) is None:
        assert not any(pattern.search(text) for pattern, _ in prompt_text._ANSWERED)
        assert prompt_text._EXPLICIT.search(text) is None


@given(st.lists(_PIECES, max_size=6).map("".join) | st.text(max_size=30))
def test_plain_text_is_clean_as_it_is(text: str) -> None:
    thorough = text.translate(prompt_text._LINES).translate(prompt_text._NOTHING)
    assert clean(text) == unicodedata.normalize("NFC", thorough.translate(prompt_text._BLANKS))
