"""One rank of a node encodes the prompts; the others never have a text encoder, and get the same bits."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from render.launch import prompt_texts
from render.launch.prompt_texts import PromptTexts
from render.launch.request import FREE, ON_DEVICE, TEXT_ENCODERS, FurtherImage, Request
from render.models import load_models, read_model_info, text_encoders
from render.models.embeddings import set_embeddings
from render.models.lora import set_loras
from render.models.model_paths import ModelPaths, model_info
from render.models.skeletons import has_skeletons, text_encoders_apart
from render.spec import Spec
from render.spec.embedding import Embedding
from render.spec.lora import Lora
from tests.render.models.test_embeddings import WIDTHS, saved
from tests.render.models.test_lora import tuned
from tests.render.models.tiny_folders import save_refiner, save_sdxl
from tests.render.models.tiny_transformers import BUILDERS, save

CPU = torch.device("cpu")
FEW = ("sd3", "z-image", "qwen-image")
"""Tensors, lists of them and None; `make test-all` takes every family."""


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sdxl(tmp_path_factory.mktemp("models") / "sdxl")


class Rank:
    """What a rank has of a model; all of it, or all but text encoders."""

    def __init__(self, paths: ModelPaths, directory: Path, rank: int) -> None:
        os.environ["LOCAL_RANK"] = str(rank)
        self.texts = PromptTexts(directory)
        with text_encoders_apart():
            loaded = load_models(paths, CPU, "float32", model_info(paths))
        self.models = [each for each in loaded if each is not None]

    def provide(self, request: Request) -> None:
        spec, pipeline = Spec.from_mapping(request.spec), self.models[0].pipeline

        def put(on: bool) -> None:
            set_embeddings(pipeline, spec.embedding if on else ())
            set_loras(pipeline, spec.lora if on else ())

        self.texts.provide(request, self.models, CPU, put)
        if spec.embedding or spec.lora:
            put(True)

    def text(self, spec: Spec, guided: bool = True, network: int = 0) -> dict[str, Any]:
        source = self.models[network].texts
        assert source is not None
        return rows_of(source(spec.prompt, spec.negative_prompt, guided, spec.reference))


def rows_of(text: Any) -> dict[str, Any]:
    return dict(text) if isinstance(text, dict) else vars(text)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")


def request_for(paths: ModelPaths, *specs: Spec, text_encoder: str = ON_DEVICE) -> Request:
    return Request(
        spec=specs[0].to_dict(),
        folders=paths,
        info=model_info(paths),
        device="cpu",
        out="unused",
        text_encoder=text_encoder,
        more=tuple(FurtherImage(spec=spec.to_dict(), out="unused") for spec in specs[1:]),
    )


def tensors(value: Any) -> list[Tensor]:
    return value if isinstance(value, list) else [] if value is None else [value]


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        assert type(found[name]) is type(expected[name])
        for one, other in zip(tensors(found[name]), tensors(expected[name]), strict=True):
            assert torch.equal(one, other) and one.dtype == other.dtype and one.stride() == other.stride()


def encoders(pipeline: Any) -> list[nn.Module]:
    parts = (getattr(pipeline, name, None) for name in ("text_encoder", "text_encoder_2", "text_encoder_3"))
    return [part for part in parts if part is not None]


def bytes_held(networks: Sequence[nn.Module]) -> int:
    weights = (each for network in networks for each in (*network.parameters(), *network.buffers()))
    return sum(each.numel() * each.element_size() for each in weights if not each.is_meta)


def check_family(folder: Path, directory: Path, text_encoder: str) -> None:
    paths = ModelPaths(model=folder)
    directory.mkdir()
    first, other = (Rank(paths, directory, rank) for rank in (0, 1))
    assert bytes_held(encoders(first.models[0].pipeline)) == 0, "a model is loaded without them"
    spec = Spec(prompt="a red vase", negative_prompt="blue", width=64, height=64, guidance_scale=4.0)
    request = request_for(paths, spec, text_encoder=text_encoder)
    waiting = threading.Thread(target=other.provide, args=(request,))
    first.provide(request)
    waiting.start()
    waiting.join(60)
    whole, _ = load_models(paths, CPU, "float32", request.info)
    # The whole model says whether the prompts are guided, by what its family does with the scale.
    guided = prompt_texts.is_guided(spec, request.info)
    expected = rows_of(whole.encode_prompt(spec.prompt, spec.negative_prompt, guided))
    for rank in (first, other):
        assert_same(rank.text(spec, guided), expected)
    held = bytes_held(encoders(first.models[0].pipeline))
    assert (held == 0) == (text_encoder == FREE)
    assert bytes_held(encoders(other.models[0].pipeline)) == 0 < bytes_held(encoders(whole.pipeline))


@pytest.mark.parametrize("name", FEW)
def test_ranks_without_text_encoders_get_the_same_bits(name: str, tmp_path: Path) -> None:
    check_family(save(name, tmp_path / name), tmp_path / "group", ON_DEVICE)


@pytest.mark.parametrize("text_encoder", TEXT_ENCODERS)
def test_wherever_the_text_encoders_are(sdxl: Path, tmp_path: Path, text_encoder: str) -> None:
    check_family(sdxl, tmp_path / "group", text_encoder)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(BUILDERS) - set(FEW)))
def test_in_every_family(name: str, tmp_path: Path) -> None:
    check_family(save(name, tmp_path / name), tmp_path / "group", FREE)


def test_a_model_with_a_refiner(sdxl: Path, tmp_path: Path) -> None:
    paths = ModelPaths(model=sdxl, refiner=save_refiner(tmp_path / "refiner"))
    first, other = (Rank(paths, tmp_path, rank) for rank in (0, 1))
    spec = Spec(prompt="a red vase", width=64, height=64, refiner="refiner")
    request = request_for(paths, spec)
    first.provide(request)
    other.provide(request)
    whole = load_models(paths, CPU, "float32", request.info)
    for network, model in enumerate(whole):
        assert model is not None
        expected = rows_of(model.encode_prompt(spec.prompt, "", True))
        assert_same(first.text(spec, network=network), expected)
        assert_same(other.text(spec, network=network), expected)
    assert all(has_skeletons(model.pipeline) for model in other.models)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The models whose text encoders are loaded from here on."""
    loaded: list[Path] = []
    put = text_encoders.put_text_encoders

    def counting(pipeline: Any, path: Path, *rest: Any) -> None:
        loaded.append(path)
        put(pipeline, path, *rest)

    monkeypatch.setattr(text_encoders, "put_text_encoders", counting)
    return loaded


@pytest.mark.parametrize(("text_encoder", "loads"), [(ON_DEVICE, 1), (FREE, 2)])
def test_a_warm_rank_encodes_only_what_is_new(
    sdxl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text_encoder: str, loads: int
) -> None:
    loaded = counted(monkeypatch)
    paths = ModelPaths(model=sdxl)
    rank = Rank(paths, tmp_path, 0)
    for prompt, seed in (("a red vase", 1), ("a red vase", 2), ("a blue bowl", 1), ("a red vase", 3)):
        spec = Spec(prompt=prompt, seed=seed, width=64, height=64)
        rank.provide(request_for(paths, spec, text_encoder=text_encoder))
        rank.text(spec)
    assert len(loaded) == loads


def test_the_prompts_of_all_images_of_a_request(sdxl: Path, tmp_path: Path) -> None:
    paths = ModelPaths(model=sdxl)
    specs = [Spec(prompt=f"a vase, number {number}", width=64, height=64) for number in range(4)]
    request = request_for(paths, *specs)
    first, other = (Rank(paths, tmp_path, rank) for rank in (0, 1))
    first.provide(request)
    other.provide(request)
    assert has_skeletons(other.models[0].pipeline)
    whole, _ = load_models(paths, CPU, "float32", request.info)
    # Which images a rank renders shows only when it is known which ranks are there.
    for rank in (first, other):
        for spec in specs:
            assert_same(rank.text(spec), rows_of(whole.encode_prompt(spec.prompt, "", True)))


def test_another_rank_encodes_when_the_first_has_died(sdxl: Path, tmp_path: Path) -> None:
    paths = ModelPaths(model=sdxl)
    first, other = (Rank(paths, tmp_path, rank) for rank in (0, 1))
    before, after = (Spec(prompt=prompt, width=64, height=64) for prompt in ("a red vase", "a bowl"))
    for rank in (first, other):
        rank.provide(request_for(paths, before))
    assert has_skeletons(other.models[0].pipeline)
    # The system takes a lock from a process that has ended.
    assert first.texts._lock is not None
    os.close(first.texts._lock)
    successor = Rank(paths, tmp_path, 2)
    for rank in (other, successor):
        rank.provide(request_for(paths, after))
    whole, _ = load_models(paths, CPU, "float32", read_model_info(sdxl))
    assert_same(other.text(after), rows_of(whole.encode_prompt("a bowl", "", True)))
    assert_same(successor.text(after), other.text(after))
    assert has_skeletons(successor.models[0].pipeline) != has_skeletons(other.models[0].pipeline)


def lora(sdxl: Path, tmp_path: Path) -> dict[str, Any]:
    return {"lora": (Lora.open(tuned(sdxl, 2, tmp_path / "kohya.safetensors", style="kohya"), 0.7),)}


def words(sdxl: Path, tmp_path: Path) -> dict[str, Any]:
    file = saved(tmp_path / "x.safetensors", 3, **WIDTHS["sdxl"])
    return {"embedding": (Embedding.open(file, "glaze"),)}


@pytest.mark.parametrize("text_encoder", [ON_DEVICE, FREE])
@pytest.mark.parametrize("make", [lora, words])
def test_what_is_put_on_text_encoders(
    sdxl: Path, tmp_path: Path, make: Callable[[Path, Path], dict[str, Any]], text_encoder: str
) -> None:
    paths, additions = ModelPaths(model=sdxl), make(sdxl, tmp_path)
    first, other = (Rank(paths, tmp_path, rank) for rank in (0, 1))
    plain = Spec(prompt="a red glaze", width=64, height=64)
    changed = plain.with_changes(**additions)
    whole, _ = load_models(paths, CPU, "float32", read_model_info(sdxl))
    found = {}
    for spec in (plain, changed, plain.with_changes(prompt="a glaze")):
        for rank in (first, other):
            rank.provide(request_for(paths, spec, text_encoder=text_encoder))
        set_embeddings(whole.pipeline, spec.embedding)
        set_loras(whole.pipeline, spec.lora)
        expected = rows_of(whole.encode_prompt(spec.prompt, "", True))
        for rank in (first, other):
            assert_same(rank.text(spec), expected)
            words = rank.models[0].pipeline.tokenizer.get_vocab()
            assert words == whole.pipeline.tokenizer.get_vocab(), "it tells what of a prompt is dropped"
        found[spec.prompt, bool(spec.lora or spec.embedding)] = expected
        # The network has what is for it on either rank.
        states = [rank.models[0].pipeline.unet.state_dict() for rank in (first, other)]
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
        # Off again for the next request, as a rank does.
        for rank in (first, other):
            set_loras(rank.models[0].pipeline, ())
            set_embeddings(rank.models[0].pipeline, ())
    both = found["a red glaze", False], found["a red glaze", True]
    assert not torch.equal(both[0]["states"], both[1]["states"]), "it changes the states"
