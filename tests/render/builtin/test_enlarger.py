"""The built-in enlarger: the network that spandrel takes it for, and nearer to photographs than bicubic."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from render.builtin import WEIGHTS
from render.builtin.data import random_scene
from render.builtin.studio import photo
from render.builtin.train_enlarger import SCALE, Compact, add_small_photos, crops
from render.builtin.training import Parts
from render.models.enlarger import open_enlarger
from render.spec import Spec
from render.spec.enlarger import EnlargerFile
from tests.support.services import require

SIDE = 176


@pytest.fixture(scope="module")
def photos() -> tuple[Tensor, Tensor]:
    """[B, 3, h, w] photographs that were halved, encoded and decoded, and [B, 3, 2 h, 2 w] themselves."""
    draw = np.random.default_rng(11)
    pixels = np.stack([photo(random_scene(draw), SIDE, SIDE) for _ in range(6)])
    parts = Parts.__new__(Parts)
    parts.groups = {(SIDE, SIDE): {"pixels": pixels}}
    add_small_photos(parts, AutoencoderTiny.from_pretrained(WEIGHTS, subfolder="vae", dtype=torch.float32))
    return crops(parts.groups[SIDE, SIDE], draw)


def psnr(pixels: Tensor, wanted: Tensor) -> float:
    return float(-10 * torch.log10(functional.mse_loss(pixels.clamp(0, 1), wanted)))


def test_it_is_nearer_to_photographs_than_bicubic_interpolation(photos: tuple[Tensor, Tensor]) -> None:
    require(find_spec("spandrel"), "spandrel", "nothing, but run make test, which installs it")
    small, wanted = photos
    enlarger = open_enlarger(EnlargerFile.from_any("builtin"), torch.device("cpu"))
    with torch.inference_mode():
        enlarged = torch.cat([enlarger.enlarge(each[None]) for each in small])
    bicubic = functional.interpolate(small, scale_factor=SCALE, mode="bicubic")
    assert psnr(enlarged, wanted) > psnr(bicubic, wanted) + 0.2


def test_spandrel_computes_what_was_trained(photos: tuple[Tensor, Tensor]) -> None:
    require(find_spec("spandrel"), "spandrel", "nothing, but run make test, which installs it")
    file = EnlargerFile.from_any("builtin")
    network = Compact()
    network.load_state_dict(load_file(file.path))
    with torch.inference_mode():
        ours = network.eval()(photos[0][:1]).clamp(0, 1)
        theirs = open_enlarger(file, torch.device("cpu")).enlarge(photos[0][:1])
    torch.testing.assert_close(theirs, ours, atol=1e-6, rtol=0)


def test_a_spec_names_it() -> None:
    by_name, by_path = (
        Spec.from_mapping({"prompt": "a red vase", "enlarger": value}).enlarger
        for value in ("builtin", EnlargerFile.from_any("builtin").path)
    )
    assert by_name is not None
    assert by_name == by_path
