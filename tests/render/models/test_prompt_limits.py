"""What a model drops of a long prompt is what its stock pipeline does not read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from render.models import load_adapter, read_model_info
from render.models.prompt_limits import dropped_by, dropped_prompts, may_be_long
from tests.render.models.tiny_transformers import save

CPU = torch.device("cpu")
QWEN_CHAT = "<|im_start|>user\n{{ messages[0]['content'] }}<|im_end|>\n<|im_start|>assistant\n"
LONG = "a red vase on a table with blue and green flowers near a wall of old stones " * 30


def states(adapter: Any, prompt: str) -> list[torch.Tensor]:
    """All that the network is given of a prompt but CLIP's pooled text, which holds its first words alone."""
    rows = adapter.encode_prompt(prompt, "", False)
    tensors = (
        [rows["states"]] if "mask" not in rows or rows["mask"] is None else [rows["states"], rows["mask"]]
    )
    return [each for value in tensors for each in (value if isinstance(value, list) else [value])]


# Each kind of tokenizer and of text before the prompt. Qwen-Image's and its kin count what is before it in
# tokens of Qwen's own vocabulary, which tiny folders do not have.
@pytest.mark.parametrize("name", ["flux", "z-image", "lumina2"])
def test_what_is_dropped_changes_nothing_and_what_is_read_does(name: str, tmp_path: Path) -> None:
    folder = save(name, tmp_path / name)
    if name == "z-image":
        (folder / "tokenizer/chat_template.jinja").write_text(QWEN_CHAT)
    adapter: Any = load_adapter(folder, CPU, "float32", read_model_info(folder))
    texts = {"prompt": LONG, "negative_prompt": "blue"}
    (found,) = dropped_prompts(folder, texts)
    assert dropped_by(adapter.pipeline, adapter.info, texts) == (found,)
    assert found.field == "prompt" and LONG.rstrip().endswith(found.text.strip())
    assert may_be_long(LONG) and 0 < found.read < found.tokens
    lost = len(found.text.strip())
    # One token is a letter here, but for those that T5 merges.
    without = LONG.rstrip()[:-lost]
    whole = states(adapter, LONG)
    for ours, theirs in zip(states(adapter, without + "xyz " * 40), whole, strict=True):
        assert torch.equal(ours, theirs)
    changed = states(adapter, without[:-3] + "xyz" + LONG[-200:])
    assert any(not torch.equal(ours, theirs) for ours, theirs in zip(changed, whole, strict=True))
    assert dropped_prompts(folder, {"prompt": "a red vase"}) == ()
    assert str(found).startswith(f"prompt: has {found.tokens} tokens, of which the model reads {found.read};")


def test_clip_families_read_prompts_to_their_end(model_folders: dict[str, Path]) -> None:
    assert dropped_prompts(model_folders["sdxl"], {"prompt": LONG}) == ()


def test_a_tokenizer_of_a_vocabulary_and_merges_is_read_without_its_package(tmp_path: Path) -> None:
    folder = save("z-image", tmp_path / "model")
    (expected,) = dropped_prompts(folder, {"prompt": LONG})
    document = json.loads((folder / "tokenizer/tokenizer.json").read_text())
    (folder / "tokenizer/vocab.json").write_text(json.dumps(document["model"]["vocab"]))
    (folder / "tokenizer/merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer/tokenizer.json").unlink()
    other = folder.rename(tmp_path / "other")
    (found,) = dropped_prompts(other, {"prompt": LONG})
    assert found.tokens == expected.tokens and found.text.strip() in LONG
