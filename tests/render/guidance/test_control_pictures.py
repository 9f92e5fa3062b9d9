"""A numbered grid as control comes out with every number once and in its place, whatever the windows are."""

from __future__ import annotations

import copy
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from render.distributed import Group, SingleRankGroup
from render.engine import render_image
from render.errors import BadInput, RenderFailed
from render.models.adapter import WindowPlace
from render.models.controlnet import ControlInput
from render.models.refined import RefinedAdapter, RefinedTexts
from render.plan.stages import make_stages
from render.sampling.process import SAMPLE
from render.spec import Spec
from render.spec.control import Control, ControlNetwork
from tests.support.groups import run_ranks
from tests.support.models import ToyModel
from tests.support.sinks import MemorySink

CPU = torch.device("cpu")
SIDE, CELL = 256, 64


class Follower(ToyModel):
    """Sees what its control picture shows, and nothing else: the whole of a ControlNet's effect."""

    prediction_type = SAMPLE

    def __init__(self) -> None:
        super().__init__(64)
        self._controls: Sequence[ControlInput] = ()

    def following(self, controls: Sequence[ControlInput]) -> Follower:
        follower = copy.copy(self)
        follower._controls = controls
        return follower

    def predict(
        self,
        latents: Tensor,
        timestep: float,
        text: Any,
        places: Sequence[WindowPlace],
        conditions: Sequence[int],
        guidance_scale: float,
    ) -> Tensor:
        seen = torch.zeros_like(latents)
        for control in self._controls:
            seen += self.encode(control.picture) * control.weight
        return seen

    def decode(self, latents: Tensor) -> Tensor:
        return functional.interpolate(latents[:, :3].clamp(0, 1), scale_factor=8.0, mode="nearest")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(the picture of a numbered grid, a folder that passes for a ControlNet)"""
    root = tmp_path_factory.mktemp("grid")
    image = Image.new("RGB", (SIDE, SIDE), "white")
    draw = ImageDraw.Draw(image)
    for number in range((SIDE // CELL) ** 2):
        y, x = divmod(number, SIDE // CELL)
        draw.rectangle([x * CELL, y * CELL, (x + 1) * CELL - 1, (y + 1) * CELL - 1], outline=(200, 0, 0))
        draw.text((x * CELL + 8, y * CELL + 4), str(number), fill="black", font_size=44)
    image.save(root / "grid.png")
    (root / "config.json").write_text("{}")
    save_file({"weight": torch.zeros(1)}, root / "diffusion_pytorch_model.safetensors")
    return root / "grid.png", root


def spec_of(files: tuple[Path, Path], **values: Any) -> Spec:
    grid, network = files
    given = {"prompt": "numbers", "width": SIDE, "height": SIDE, "steps": 2, "tile_size": 64}
    parts = {"control": [f"tile={grid}"], "controlnet": [str(network)]}
    return Spec.from_mapping(given | parts | values)


def rendered(spec: Spec, ranks: int) -> tuple[np.ndarray, str]:
    sink = MemorySink()

    def render(group: Group) -> str:
        return render_image(spec, Follower(), group, sink, device=CPU).root

    roots = {render(SingleRankGroup())} if ranks == 1 else set(run_ranks(ranks, render))
    (root,) = roots
    level = (max(spec.width, spec.height) - 1).bit_length()
    image = np.zeros((spec.height, spec.width, 3), np.uint8)
    for key, data in sink.files.items():
        if key.startswith(f"image_files/{level}/"):
            col, row = map(int, Path(key).stem.split("_"))
            tile = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
            image[row * 64 : row * 64 + tile.shape[0], col * 64 : col * 64 + tile.shape[1]] = tile
    return image, root


def shown(path: Path, width: int = SIDE, height: int = SIDE) -> np.ndarray:
    """The picture as a model of 8 pixels to a latent can show it."""
    with Image.open(path) as image:
        small = image.resize((width // 8, height // 8), Image.Resampling.BOX)
    return np.asarray(small).repeat(8, axis=0).repeat(8, axis=1)


def is_close(one: np.ndarray, other: np.ndarray) -> bool:
    return int(np.abs(one.astype(int) - other.astype(int)).max()) <= 2


@pytest.mark.parametrize("values", [{}, {"blend": "shift", "wrap": "xy"}, {"strength": 1.0, "wrap": "x"}])
def test_every_number_comes_out_once_and_in_its_place(
    files: tuple[Path, Path], values: dict[str, Any]
) -> None:
    spec = spec_of(files, ilvr=0.0, **values)
    grid = make_stages(spec, Follower().info)[-1].grid
    assert grid.rows.count >= 4 and grid.cols.count >= 4
    alone, root = rendered(spec, 1)
    assert is_close(alone, shown(files[0]))
    assert rendered(spec, 3)[1] == root


def test_a_picture_of_another_size_is_scaled_to_each_stage(files: tuple[Path, Path]) -> None:
    spec = spec_of(files, width=128, height=128, ilvr=0.0)
    found, _ = rendered(spec, 1)
    # Lanczos rings beside the numbers' edges, where a box does not.
    assert np.abs(found.astype(int) - shown(files[0], 128, 128)).mean() < 12


def test_a_picture_counts_for_its_share_of_the_steps(files: tuple[Path, Path]) -> None:
    never_last = spec_of(files, width=64, height=64, control=[f"tile={files[0]}:0-0.5"])
    with pytest.raises(RenderFailed, match="the image is flat"):
        rendered(never_last, 1)
    half = spec_of(files, width=64, height=64, control=[f"tile={files[0]}:0.5:0.5-1"])
    assert 100 < rendered(half, 1)[0].max() < 140


def test_a_refiner_does_not_follow_the_pictures_of_its_model() -> None:
    both = RefinedAdapter(model=Follower(), refiner=Follower(), last_model_timestep=500.0)
    picture = ControlInput(network=0, kind="tile", picture=torch.ones((1, 3, 64, 64)), weight=1.0)
    place = WindowPlace(image_height=64, image_width=64, pixel_y=0, pixel_x=0, height=64, width=64)

    def brightest(adapter: RefinedAdapter, timestep: float) -> float:
        latents, texts = torch.zeros((1, 4, 8, 8)), RefinedTexts(0.0, 0.0)
        return float(adapter.predict(latents, timestep, texts, [place], [0], 1.0).max())

    following = both.following([picture])
    assert [brightest(following, timestep) for timestep in (500.0, 499.0)] == [1.0, 0.0]
    assert brightest(both, 500.0) == 0.0, "the adapter itself stays as it is"


def test_the_rule_of_the_steps_is_that_of_diffusers() -> None:
    control = Control(path="a.png", digest="0" * 64, width=8, height=8, kind="canny", start=0.2, end=0.6)
    expected = [1.0 - float(i / 10 < 0.2 or (i + 1) / 10 > 0.6) for i in range(10)]
    assert [float(control.counts_at(step, 10)) for step in range(10)] == expected


def test_how_a_control_picture_is_written(files: tuple[Path, Path]) -> None:
    grid = files[0]
    plain, weighted, ranged, both = (
        Control.from_any(f"canny={grid}{tail}") for tail in ("", ":0.8", ":0-0.6", ":.8:0.2-0.6")
    )
    assert (plain.kind, plain.weight, plain.start, plain.end) == ("canny", 1.0, 0.0, 1.0)
    assert (weighted.weight, weighted.end) == (0.8, 1.0)
    assert (ranged.weight, ranged.end) == (1.0, 0.6)
    assert (both.weight, both.start, both.end) == (0.8, 0.2, 0.6)
    assert Control.from_any({"kind": "canny", "path": str(grid), "weight": 0.8}) == weighted
    named = grid.with_name("a=b:0.5")
    named.write_bytes(grid.read_bytes())
    assert Control.from_any(f"canny={named}").path == str(named)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"control": ["grid.png"]}, r"^control: 'grid.png' is not KIND=IMAGE"),
        ({"control": ["canny=none.png"]}, r"^control: 'none.png' cannot be read"),
        ({"control": ["Canny Edge=grid.png"]}, r"^control.kind: 'Canny Edge' is not a kind of control"),
        ({"control": ["canny=grid.png:11"]}, r"^control.weight: 11.0 "),
        ({"control": ["canny=grid.png:0.6-0.2"]}, r"^control: '0.6-0.2' is no range of steps"),
        ({"control": ["canny=grid.png"], "controlnet": []}, r"^control: 'grid.png' needs a network"),
        ({"control": []}, r"^controlnet: .* needs a picture; give --control"),
        ({"controlnet": ["nowhere"]}, r"^controlnet: 'nowhere' is no folder with the config.json"),
        ({"controlnet": [".", "."]}, r"^controlnet: 2 are 2 networks for 1 pictures"),
        ({"width": 512}, r"^control: .* is 256x256, another shape than 512x256"),
        ({"dilated": 0.5}, r"^dilated: 0.5 does not go with control pictures"),
    ],
)
def test_what_cannot_be_followed_is_told(
    files: tuple[Path, Path], values: dict[str, Any], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files[1])
    with pytest.raises(BadInput, match=sentence):
        spec_of(files, **values)


def test_a_path_plays_no_part_in_the_digest_and_the_weight_does(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    spec = spec_of(files)
    moved = tmp_path / "moved.png"
    moved.write_bytes(files[0].read_bytes())
    assert spec_of(files, control=[f"tile={moved}"]).digest("m") == spec.digest("m")
    assert spec_of(files, control=[f"tile={files[0]}:0.5"]).digest("m") != spec.digest("m")
    plain = Spec.from_mapping({"prompt": "numbers"})
    assert "control" not in plain.to_dict() and "controlnet" not in plain.to_dict()
    assert Spec.from_mapping(spec.to_dict()) == spec
    network = ControlNetwork.open(files[1])
    assert spec.controlnet == (network,)
