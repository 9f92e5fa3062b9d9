"""Natural wording: true captions of every scene, and a tokenizer that knows their words and bears others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen2Tokenizer

from render.builtin.backdrops import PLAIN_BACKDROPS
from render.builtin.dit_folder import TEXT_UNIT, new_tokenizer, token_rows
from render.builtin.dit_judge import NEWCOMER
from render.builtin.studio import BACKDROPS, COLOURS, MATERIALS, MOST_PRODUCTS, Scene
from render.builtin.wording import COLORS, PRODUCTS, all_words, wording

SCENES = st.builds(
    Scene,
    product=st.sampled_from(list(PRODUCTS)),
    colour=st.sampled_from(list(COLOURS)),
    material=st.sampled_from(MATERIALS),
    backdrop=st.sampled_from([*BACKDROPS, *PLAIN_BACKDROPS]),
    seed=st.just(0),
    count=st.integers(1, MOST_PRODUCTS),
)


@pytest.fixture(scope="module")
def tokenizer() -> Qwen2Tokenizer:
    return new_tokenizer()


def _names(text: str, number: int) -> set[str]:
    """The products that a caption names, singular (0) or plural (1)."""
    words = text.replace(",", " ").replace(".", " ").split()
    return {
        product
        for product, names in PRODUCTS.items()
        if any(name[number].split()[-1] in words for name in names)
    }


@settings(max_examples=200)
@given(SCENES, st.integers(0, 10_000), st.booleans())
def test_captions_tell_the_truth(scene: Scene, seed: int, long: bool) -> None:
    text = wording(scene, np.random.default_rng(seed), long, complete=True)
    assert text == text.lower()
    # "a block of cement" has no other product, and a plural never stands for one.
    assert _names(text, int(scene.count > 1)) == {scene.product}
    assert any(color in text for color in COLORS[scene.colour])
    numbers = {2: ("two", "2", "pair", "couple"), 3: ("three", "3", "trio")}
    for count, words in numbers.items():
        assert any(word in text.split() for word in words) == (scene.count == count)


def test_no_word_names_two_things() -> None:
    products = [{name.split()[-1] for pair in names for name in pair} for names in PRODUCTS.values()]
    assert len(set.union(*products)) == sum(map(len, products))
    colors = [set(names) for names in COLORS.values()]
    assert len(set.union(*colors)) == sum(map(len, colors))
    assert list(COLORS) == list(COLOURS)


def test_each_word_of_the_captions_is_one_token(tokenizer: Qwen2Tokenizer) -> None:
    for word in all_words():
        parts = word.split("-")
        if word.isalpha():
            assert len(tokenizer(f" {word}").input_ids) == 1, word
        elif all(part.isalpha() for part in parts):
            assert len(tokenizer(f" {word}").input_ids) == len(parts), word


def test_case_and_spaces_around_a_prompt_are_nothing(tokenizer: Qwen2Tokenizer) -> None:
    plain, shouted = token_rows(tokenizer, ["a red vase", "  A RED Vase "], TEXT_UNIT)
    assert plain.tolist() == shouted.tolist()


@pytest.mark.parametrize("prompt", [*NEWCOMER, "", "éclair 花瓶 🙂", "x" * 200, "<|im_end|>"])
def test_any_prompt_has_ids_within_the_vocabulary(tokenizer: Qwen2Tokenizer, prompt: str) -> None:
    ids = token_rows(tokenizer, [prompt], 2 * TEXT_UNIT)
    assert 0 <= int(ids.min()) <= int(ids.max()) < len(tokenizer)


def test_saved_and_loaded_the_ids_are_the_same(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    again = Qwen2Tokenizer.from_pretrained(tmp_path)
    rows = [
        token_rows(each, list(NEWCOMER), TEXT_UNIT).tolist() for each in (tokenizer, again, new_tokenizer())
    ]
    assert rows[0] == rows[1] == rows[2]
