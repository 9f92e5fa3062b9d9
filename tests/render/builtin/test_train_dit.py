"""The flow transformer: trained as diffusers evaluates it, resumed to the same weights, and packed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import ZImagePipeline
from torch import Tensor

from render.builtin import train_dit
from render.builtin.dit_data import LONG_TEXT, Shards, draw_shard, random_scene, scenes_of, teacher_caption
from render.builtin.dit_folder import (
    LATENT_SCALE,
    LATENT_SHIFT,
    TEXT_UNIT,
    new_text_encoder,
    new_tokenizer,
    new_transformer,
    save_dit,
    token_rows,
)
from render.builtin.dit_forward import FlowDenoiser
from render.builtin.dit_judge import decoded
from render.builtin.dit_loss import Teacher
from render.builtin.folder import new_scheduler
from render.builtin.muon import orthogonalized
from render.builtin.studio import photo
from render.builtin.train_dit import main
from render.errors import ModelNotUsable
from render.models import load_adapter, packaged
from render.models.folder import read_model_info, resolve_model
from tests.render.models.test_transformers_equal_stock import Case, our_latents, unit_noise


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    draw_shard(folder, 16, 5, 0)
    return folder


def random_model() -> FlowDenoiser:
    """With what begins at zero drawn too, so that every weight has a part in the prediction."""
    torch.manual_seed(0)
    model = FlowDenoiser(new_transformer(), new_text_encoder(new_tokenizer()))
    with torch.no_grad():
        for weight in model.transformer.parameters():
            if not weight.any():
                weight.normal_(std=0.05)
    return model.eval()


@pytest.mark.parametrize(("height", "width", "length"), [(16, 16, TEXT_UNIT), (12, 20, LONG_TEXT)])
def test_the_forward_of_the_training_is_that_of_diffusers(height: int, width: int, length: int) -> None:
    model, tokenizer = random_model(), new_tokenizer()
    latents, sigmas = torch.randn(3, 16, height, width), torch.tensor([0.05, 0.5, 1.0])
    long = " ".join(["red"] * (length - 4))
    ids = token_rows(tokenizer, ["a red vase on wood", long if length > TEXT_UNIT else "", long], length)
    known = [
        model.text_encoder(input_ids=row[None], output_hidden_states=True).hidden_states[-2][0] for row in ids
    ]
    states = [state[row != tokenizer.pad_token_id] for state, row in zip(known, ids, strict=True)]
    with torch.inference_mode():
        ours = model(latents, sigmas, ids)
        for number in range(3):
            if -(-len(states[number]) // TEXT_UNIT) * TEXT_UNIT == length:
                inputs = [latents[number, :, None]], 1 - sigmas[number : number + 1], [states[number]]
                theirs = model.transformer(*inputs, return_dict=False)[0][0][:, 0]
                assert (ours[number] + theirs).abs().max() <= 1e-4 * max(1.0, float(theirs.std()))
    assert ours.std() > 0.01


def test_a_resumed_training_ends_with_the_same_weights(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class AfterOneStep:
        def __init__(self) -> None:
            self.left = 1

        def __bool__(self) -> bool:
            self.left -= 1
            return self.left < 0

    def train(name: str) -> None:
        words = [
            "--data",
            data,
            "--state",
            tmp_path / f"{name}.pt",
            "--out",
            tmp_path / name,
            "--teacher-share",
            1,
        ]
        result = CliRunner().invoke(main, [*map(str, words), "--steps", "2", "--batch", "2"])
        assert result.exit_code == 0, result.output

    torch.set_num_threads(1)
    train("whole")
    with monkeypatch.context() as patched:
        patched.setattr(train_dit, "Stopped", AfterOneStep)
        train("parts")
    assert torch.load(tmp_path / "parts.pt", weights_only=True)["step"] == 1
    train("parts")
    whole, parts = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("whole", "parts"))
    assert whole["step"] == parts["step"] == 2
    changed = 0
    for name, value in whole["model"].items():
        assert torch.equal(value, parts["model"][name]), name
        assert torch.equal(whole["average"][name], parts["average"][name]), name
        changed += bool(value.any())
    assert changed > 100


def test_shards_hold_what_was_drawn(data: Path) -> None:
    shards = Shards(data, "cpu")
    assert shards.count == 16
    assert shards.read() == 0
    rows = shards.batch(np.random.default_rng(3), 5)
    assert rows["latents"].shape == rows["below"].shape == (5, 16, *rows["latents"].shape[2:])
    assert rows["ids"].shape[1] in (TEXT_UNIT, LONG_TEXT)
    latents, scenes, whole = scenes_of(data, (16, 16))
    number = int(np.flatnonzero(whole)[0])
    shown = decoded(latents[number : number + 1])[0].permute(1, 2, 0).numpy() * 255
    assert np.abs(shown - photo(scenes[number], 128, 128)).mean() < 8


def test_a_teacher_knows_single_products_on_its_own_backdrops() -> None:
    draw = np.random.default_rng(0)
    for scene in [random_scene(draw) for _ in range(60)]:
        known = scene.count == 1 and scene.backdrop not in ("white", "black")
        assert bool(teacher_caption(scene)) == known


def test_a_teachers_velocity_is_noise_minus_photograph() -> None:
    """With a network that answers rightly on the UNet's own path."""
    teacher, levels = Teacher("cpu"), [150, 400, 800]
    alphas = new_scheduler().alphas_cumprod[levels]
    clean, noise = torch.randn(3, 16, 8, 8), torch.randn(3, 16, 8, 8)
    signal, spread = (part.sqrt()[:, None, None, None] for part in (alphas, 1 - alphas))

    def answer(own: Tensor, times: Tensor, ids: Tensor, places: Tensor) -> Tensor:
        assert times.tolist() == pytest.approx(levels, abs=0.01)
        assert (own - (signal * clean + spread * noise)).abs().max() < 1e-4
        answer: Tensor = signal * noise - spread * clean
        return answer

    teacher._denoiser = answer  # type: ignore[assignment]
    ratio = (1 / alphas - 1).sqrt() * LATENT_SCALE
    sigmas = ratio / (1 + ratio)
    level, scaled = sigmas[:, None, None, None], (clean - LATENT_SHIFT) * LATENT_SCALE
    found = teacher.velocity(
        (1 - level) * scaled + level * noise, sigmas, torch.zeros(3, 24), torch.zeros(3, 6)
    )
    assert (found - (noise - scaled)).abs().max() < 1e-3


@pytest.mark.parametrize("shape", [(2, 6, 6), (3, 4, 9), (1, 12, 5)])
def test_orthogonalized_matrices_have_singular_values_near_one(shape: tuple[int, ...]) -> None:
    values = torch.linalg.svdvals(
        orthogonalized(torch.randn(shape, generator=torch.Generator().manual_seed(1)))
    )
    assert float(values.min()) > 0.3
    assert float(values.max()) < 1.3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = random_model()
    target = tmp_path_factory.mktemp("dit") / "weights"
    save_dit(target, model.transformer, model.text_encoder, new_tokenizer())
    return target


def test_the_folder_is_small_and_of_its_family(folder: Path) -> None:
    info = read_model_info(folder)
    assert (info.family, info.native_size, info.latent_channels, info.patch) == ("z-image", 128, 16, 2)
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 16 * 10**6
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} <= {
        ".json",
        ".safetensors",
        ".jinja",
    }


def test_latents_equal_those_of_the_stock_pipeline(folder: Path) -> None:
    guidance = 1.5
    adapter = load_adapter(folder, torch.device("cpu"), "float32")
    pipeline = ZImagePipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    case = Case("builtin-dit", guidance, negative_prompt="blue")
    ours, noise = our_latents(adapter, case), unit_noise(adapter)

    def theirs(output_type: str) -> Tensor:
        images: Tensor = pipeline(
            "a red vase", 128, 128, num_inference_steps=3, guidance_scale=guidance, negative_prompt="blue",
            latents=noise.clone(), output_type=output_type,
        ).images  # fmt: skip
        return images

    latents = theirs("latent")
    assert latents.std() > 0.1
    assert (ours - latents).abs().max() <= 1e-5 * max(1.0, float(latents.std()))
    assert (adapter.decode(ours) - theirs("pt")).abs().max() <= 1 / 255


def test_it_is_offered_where_its_weights_are(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = packaged.packaged_models()
    assert "builtin" in shipped
    for name in shipped:
        assert json.loads((resolve_model(name) / "model_index.json").read_text())["_class_name"]
    monkeypatch.setitem(packaged._FOLDERS, "builtin-dit", str(folder))
    assert packaged.packaged_models() == ("builtin", "builtin-dit")
    assert resolve_model("builtin-dit") == folder
    monkeypatch.setitem(packaged._FOLDERS, "builtin-dit", str(folder / "absent"))
    with pytest.raises(ModelNotUsable, match="is not on this machine"):
        resolve_model("builtin-dit")
