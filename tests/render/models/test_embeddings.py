"""Learned words: equal to diffusers' load_textual_inversion, taken off to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

from render.errors import BadInput
from render.models import load_adapter
from render.models.embeddings import set_embeddings
from render.models.model_paths import ModelPaths, check_embeddings
from render.spec import Spec
from render.spec.embedding import Embedding
from tests.render.models.test_equals_stock import our_latents, stock_latents
from tests.render.models.tiny_transformers import save

CPU = torch.device("cpu")
SD, SDXL = {"emb_params": 16}, {"clip_l": 16, "clip_g": 24}
WIDTHS = {"sd-v": SD, "sdxl": SDXL, "sdxl-second-only": {"clip_g": 24}}


def saved(file: Path, vectors: int = 1, **widths: int) -> Path:
    torch.manual_seed(vectors)
    save_file({name: torch.randn(vectors, width) for name, width in widths.items()}, file)
    return file


def latents(adapter: Any) -> Tensor:
    """Of the prompt `a red vase`."""
    return our_latents(adapter, adapter.schedule("euler", 2), "euler", 4.0, "blue")


def stock_with(folder: Path, embedding: Embedding) -> Any:
    pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    tensors = load_file(embedding.path)
    for part, tokenizer in (("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2")):
        encoder, name = getattr(pipeline, part, None), "clip_g" if part.endswith("2") else "clip_l"
        if encoder is not None:
            pipeline.load_textual_inversion(
                tensors.get(name, next(iter(tensors.values()))),
                token=embedding.word,
                tokenizer=getattr(pipeline, tokenizer),
                text_encoder=encoder,
            )
    return pipeline


@pytest.mark.parametrize("vectors", [1, 3])
@pytest.mark.parametrize("kind", sorted(WIDTHS))
def test_latents_equal_those_of_the_stock_pipeline_with_the_same_word(
    model_folders: dict[str, Path], tmp_path: Path, kind: str, vectors: int
) -> None:
    folder = model_folders[kind]
    embedding = Embedding.open(saved(tmp_path / "x.safetensors", vectors, **WIDTHS[kind]), "vase")
    adapter: Any = load_adapter(folder, CPU, "float32")
    plain = latents(adapter)
    set_embeddings(adapter.pipeline, [embedding])
    ours = latents(adapter)
    theirs = stock_latents(stock_with(folder, embedding), 2, 4.0, "blue")
    if kind != "sd-v":  # whose own schedule is another one
        assert (ours - theirs).abs().max() <= 1e-5 * max(1.0, float(theirs.std()))
    assert (ours - plain).abs().max() > 1e-4, "it changes the picture"
    other = Embedding.open(saved(tmp_path / "other.safetensors", 2, **WIDTHS[kind]), "red")
    set_embeddings(adapter.pipeline, [other])
    fresh: Any = load_adapter(folder, CPU, "float32")
    set_embeddings(fresh.pipeline, [other])
    assert torch.equal(latents(adapter), latents(fresh)), "one word after another is a fresh model"
    set_embeddings(adapter.pipeline, [])
    assert torch.equal(latents(adapter), plain), "and is taken off to the last bit"


def test_a_word_of_many_vectors_makes_a_prompt_long(model_folders: dict[str, Path], tmp_path: Path) -> None:
    adapter: Any = load_adapter(model_folders["sdxl"], CPU, "float32")
    embedding = Embedding.open(saved(tmp_path / "x.safetensors", 20, **SDXL), "vase")
    set_embeddings(adapter.pipeline, [embedding])
    states = adapter.encode_prompt("a red vase", "", False).states
    assert states.shape[1] >= 2 * adapter.pipeline.tokenizer.model_max_length
    weighted = adapter.encode_prompt("a red (vase:1.3)", "", False).states
    assert weighted.shape == states.shape and not torch.equal(weighted, states)


def test_the_word_is_in_the_file_or_its_name_or_given(tmp_path: Path) -> None:
    file = saved(tmp_path / "cat.safetensors", 2, **{"<cat-toy>": 16})
    assert Embedding.open(file).word == "<cat-toy>"
    assert Embedding.from_any(f"{file}:toy").word == "toy"
    assert Embedding.open(saved(tmp_path / "neg.safetensors", 2, **SDXL)).word == "neg"
    spec = Spec.from_mapping({"prompt": "x", "embedding": [str(file)], "dtype": "float32"})
    again = Spec.from_mapping(spec.to_dict())
    assert again == spec and "path" not in spec.canonical_json("m").partition("embedding")[2][:120]
    moved = spec.with_changes(embedding=(spec.embedding[0].with_changes(path="/x"),))
    assert moved.digest("m") == spec.digest("m")
    renamed = spec.with_changes(embedding=(spec.embedding[0].with_changes(word="toy"),))
    assert renamed.digest("m") != spec.digest("m")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        ((2**40).to_bytes(8, "little") + b"{}", "is damaged"),
        (b"PK\x03\x04", "is a pickle"),
        (b"", "is empty"),
    ],
)
def test_files_that_hold_no_word_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(content)
    with pytest.raises(BadInput, match=message) as refused:
        Embedding.open(file)
    assert refused.value.field == "embedding"


def test_others_are_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(b"\x80\x02")
    with pytest.raises(BadInput, match="convert it to safetensors"):
        Embedding.open(tmp_path / "x.pt")
    with pytest.raises(BadInput, match="is not a file"):
        Embedding.open(tmp_path / "none.safetensors")
    with pytest.raises(BadInput, match="is no learned word"):
        Embedding.open(saved(tmp_path / "a.safetensors", 1, a=16, b=16))
    with pytest.raises(BadInput, match="has 80 vectors"):
        Embedding.open(saved(tmp_path / "b.safetensors", 80, **SD))
    file = saved(tmp_path / "c.safetensors", 1, **SD)
    for word in ("two words", "", "x" * 65):
        with pytest.raises(BadInput, match="no word for a prompt"):
            Embedding.open(file, word)
    with pytest.raises(BadInput, match="as another one has"):
        Spec.from_mapping({"prompt": "x", "embedding": [f"{file}:a", f"{file}:A"]})


def test_one_for_another_model_is_refused_when_planned(
    model_folders: dict[str, Path], tmp_path: Path
) -> None:
    sd, sdxl = (
        Embedding.open(saved(tmp_path / f"{len(widths)}.safetensors", 1, **widths)) for widths in (SD, SDXL)
    )
    check_embeddings(ModelPaths(model=model_folders["sd-v"]), [sd])
    check_embeddings(ModelPaths(model=model_folders["sdxl"]), [sdxl])
    with pytest.raises(BadInput, match="has no vectors for the model's text_encoder_2"):
        check_embeddings(ModelPaths(model=model_folders["sdxl"]), [sd])
    wide = Embedding.open(saved(tmp_path / "wide.safetensors", 1, emb_params=24))
    with pytest.raises(BadInput, match="has vectors of 24 for text_encoder, and the model's are of 16"):
        check_embeddings(ModelPaths(model=model_folders["sd-v"]), [wide])
    flux = save("z-image", tmp_path / "z")
    with pytest.raises(BadInput, match="Stable Diffusion 1, 2 and XL"):
        check_embeddings(ModelPaths(model=flux), [sd])
    adapter: Any = load_adapter(model_folders["sd-v"], CPU, "float32")
    with pytest.raises(BadInput, match="which the model knows already"):
        set_embeddings(adapter.pipeline, [Embedding.open(Path(sd.path), "a</w>")])


def test_a_full_gpu_is_no_fault_of_the_word(
    model_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter: Any = load_adapter(model_folders["sd-v"], CPU, "float32")

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(type(adapter.pipeline), "load_textual_inversion", full)
    with pytest.raises(torch.OutOfMemoryError):
        set_embeddings(adapter.pipeline, [Embedding.open(saved(tmp_path / "x.safetensors", **SD), "vase")])
