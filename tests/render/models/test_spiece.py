"""T5's vocabulary as it was published: spiece.model without tokenizer.json."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from render.errors import ModelNotUsable
from render.models import folder as model_folder
from render.models import load_adapter, read_model_info
from render.models.prompt_limits import dropped_prompts
from tests.render.models.tiny_transformers import save

pytestmark = pytest.mark.skipif(find_spec("sentencepiece") is None, reason="needs chorale[sentencepiece]")
TEXTS = ("a red vase", "two Blue mugs, and a vase", "")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose tokenizer is sentencepiece's own file alone."""
    from sentencepiece import SentencePieceTrainer

    folder = save("chroma", tmp_path_factory.mktemp("spiece") / "chroma")
    part = folder / "tokenizer"
    for file in part.iterdir():
        if file.name != "tokenizer_config.json":
            file.unlink()
    texts = ("a red vase stands on a table", "two blue mugs and a vase", "a bird in the light") * 20
    SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_prefix=str(part / "spiece"),
        model_type="unigram",
        vocab_size=29,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (part / "spiece.vocab").unlink()
    return folder


def test_its_tokens_are_sentencepieces(folder: Path) -> None:
    from sentencepiece import SentencePieceProcessor

    pieces = SentencePieceProcessor(model_file=str(folder / "tokenizer" / "spiece.model"))
    assert read_model_info(folder).family == "chroma"
    adapter: Any = load_adapter(folder, torch.device("cpu"), "float32")
    for text in TEXTS:
        assert adapter.pipeline.tokenizer(text)["input_ids"] == [*pieces.encode(text), 1]
    long = "a red vase " * 300
    (dropped,) = dropped_prompts(folder, {"prompt": long})
    assert dropped.tokens == len(pieces.encode(long)) and dropped.read == 511


def test_without_its_package_the_folder_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_folder, "_is_installed", lambda name: name != "sentencepiece")
    with pytest.raises(ModelNotUsable, match=r"pip install 'chorale\[sentencepiece\]'"):
        model_folder.family_of(folder)


def test_the_vocabulary_is_part_of_the_identity(folder: Path) -> None:
    before = read_model_info(folder).digest
    file = folder / "tokenizer" / "spiece.model"
    data = file.read_bytes()
    try:
        file.write_bytes(data + b"\0")
        assert read_model_info(folder).digest != before
    finally:
        file.write_bytes(data)
