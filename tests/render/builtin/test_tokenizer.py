"""The tokenizer: our words are one token each, anything else has ids too, and a saved one stays the same."""

from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from render.builtin import WEIGHTS
from render.builtin.captions import all_captions
from render.builtin.folder import TEXT_LENGTH, new_tokenizer, tokens
from render.builtin.studio import BACKDROPS, COLOURS, MATERIALS, PRODUCTS

PROMPTS = [
    "a red vase on a wooden table",
    "Studio shot of a TEAL woven Box on marble",
    "a zebra quartz, 1920!",
    "éclair 花瓶 🙂",
    "",
]


@pytest.fixture(scope="module")
def shipped() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(WEIGHTS / "tokenizer_2")


@pytest.mark.parametrize("word", [*PRODUCTS, *COLOURS, *MATERIALS, *BACKDROPS, "photo", "product", "table"])
def test_a_word_of_ours_is_one_token_that_reads_back(shipped: CLIPTokenizer, word: str) -> None:
    ids = shipped(word, add_special_tokens=False).input_ids
    assert len(ids) == 1
    assert shipped.decode(ids).strip() == word


def test_words_have_ids_of_their_own(shipped: CLIPTokenizer) -> None:
    words = [*PRODUCTS, *COLOURS, *MATERIALS]
    assert len({shipped(word, add_special_tokens=False).input_ids[0] for word in words}) == len(words)


def test_any_prompt_has_ids_within_the_vocabulary(shipped: CLIPTokenizer) -> None:
    ids = tokens(shipped, [*PROMPTS, "x" * 500])
    assert ids.shape == (len(PROMPTS) + 1, TEXT_LENGTH)
    assert int(ids.min()) >= 0
    assert int(ids.max()) < len(shipped)


def test_no_caption_loses_its_product(shipped: CLIPTokenizer) -> None:
    own = {shipped(word, add_special_tokens=False).input_ids[0] for word in PRODUCTS}
    assert all(own & set(ids) for ids in tokens(shipped, sorted(set(all_captions()))).tolist())


def test_made_twice_the_ids_are_the_same() -> None:
    assert (tokens(new_tokenizer(), PROMPTS) == tokens(new_tokenizer(), PROMPTS)).all()


def test_a_new_one_has_a_token_for_each_word() -> None:
    fresh = new_tokenizer()
    words = sorted({word for text in all_captions() for word in text.split()})
    assert all(len(fresh(word, add_special_tokens=False).input_ids) == 1 for word in words)


def test_saved_and_loaded_the_ids_are_the_same(tmp_path: Path) -> None:
    fresh = new_tokenizer()
    fresh.save_pretrained(tmp_path)
    again = CLIPTokenizer.from_pretrained(tmp_path)
    assert (tokens(fresh, PROMPTS) == tokens(again, PROMPTS)).all()
    assert tokens(again, PROMPTS[-1:]).tolist() != tokens(again, PROMPTS[:1]).tolist()
