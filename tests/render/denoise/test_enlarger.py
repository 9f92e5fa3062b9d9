"""Super-resolution networks between stages: as undivided, and to one root on any number of ranks."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from render.canvas import cut_out
from render.denoise.network_enlarging import NetworkEnlarging
from render.distributed import Group
from render.engine import render_image
from render.errors import BadInput
from render.models import enlarger as enlarger_module
from render.models.enlarger import Enlarger, check_enlarger, open_enlarger
from render.plan.enlarge_layout import NETWORK_ALIGNMENT, EnlargeLayout, network_scale
from render.plan.plan import make_plan
from render.plan.topology import Topology
from render.rect import Rect
from render.spec import Spec, read_spec_file
from render.spec.enlarger import EnlargerFile
from tests.support.groups import run_ranks
from tests.support.models import ToyModel
from tests.support.services import require
from tests.support.sinks import MemorySink

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny networks of real architectures with random weights, and files that are none."""
    require(find_spec("spandrel"), "spandrel", "nothing, but run make test, which installs it")
    folder = tmp_path_factory.mktemp("networks")
    save_file({"weight": torch.zeros(3)}, folder / "other.safetensors")
    check = EnlargerFile.open(folder / "other.safetensors")
    with pytest.raises(BadInput):
        check_enlarger(check)  # spandrel is imported as the engine does it
    from spandrel.architectures.Compact import Compact
    from spandrel.architectures.SwinIR import SwinIR

    torch.manual_seed(3)
    swin = {"upscale": 4, "img_size": 16, "window_size": 8, "depths": [2], "embed_dim": 8, "num_heads": [2]}
    made = {
        "compact": Compact(num_in_ch=3, num_out_ch=3, num_feat=8, num_conv=2, upscale=2),
        "swinir": SwinIR(**swin, mlp_ratio=2, upsampler="pixelshuffledirect"),
        "denoiser": Compact(num_in_ch=3, num_out_ch=3, num_feat=8, num_conv=1, upscale=1),
        "gray": Compact(num_in_ch=1, num_out_ch=1, num_feat=8, num_conv=1, upscale=2),
    }
    for name, network in made.items():
        state = {key: value.contiguous() for key, value in network.state_dict().items()}
        save_file(state, folder / f"{name}.safetensors")
    names = [*made, "other"]
    return {name: folder / f"{name}.safetensors" for name in names}


def opened(path: Path) -> Enlarger:
    return open_enlarger(EnlargerFile.open(path), CPU)


def undivided(enlarger: Enlarger, picture: Tensor, scale: int) -> Tensor:
    large = enlarger.enlarge(picture)
    return functional.avg_pool2d(large, enlarger.scale // scale) if scale < enlarger.scale else large


@pytest.mark.parametrize("name", ["compact", "swinir"])
@pytest.mark.parametrize("pixel", [8, 1])
def test_tiles_are_those_of_the_undivided_picture(networks: dict[str, Path], name: str, pixel: int) -> None:
    below = Topology(height=320 // pixel, width=448 // pixel)
    above = Topology(height=640 // pixel, width=896 // pixel)
    halo = 16 // pixel
    layout = EnlargeLayout(
        canvas=above, below=below, scale_factor=pixel, halo=halo, world_size=1, network=True
    )
    picture = torch.rand((1, 3, 320, 448), generator=torch.Generator().manual_seed(1))
    read: list[Rect] = []

    def pixels(area: Rect) -> Tensor:
        read.append(area)
        return cut_out(picture, whole, _times(area, pixel), Topology(height=320, width=448))

    whole = Rect(y=0, x=0, height=320, width=448)
    enlarger = opened(networks[name])
    enlarge, expected = NetworkEnlarging(enlarger, layout, pixels), undivided(enlarger, picture, 2)
    areas = layout.tiles if pixel == 8 else (Rect(y=97, x=331, height=201, width=160),)
    for tile in areas:
        area = layout.padded(tile)
        found = enlarge(area)
        y, x = area.y * pixel, area.x * pixel
        part = expected[..., y : y + area.height * pixel, x : x + area.width * pixel]
        torch.testing.assert_close(found, part, rtol=0, atol=1e-5)
    assert all(each.y * pixel % NETWORK_ALIGNMENT == each.x * pixel % NETWORK_ALIGNMENT == 0 for each in read)
    assert all(each.area < below.whole.area for each in read)


def _times(area: Rect, pixel: int) -> Rect:
    return Rect(y=area.y * pixel, x=area.x * pixel, height=area.height * pixel, width=area.width * pixel)


def test_on_a_canvas_that_wraps_the_network_sees_the_other_side(networks: dict[str, Path]) -> None:
    below = Topology(height=16, width=40, wrap_x=True)
    layout = EnlargeLayout(
        canvas=Topology(height=32, width=80, wrap_x=True),
        below=below,
        scale_factor=8,
        halo=0,
        world_size=1,
        network=True,
    )
    picture = torch.rand((1, 3, 128, 320), generator=torch.Generator().manual_seed(2))
    around = Topology(height=128, width=320, wrap_x=True)
    enlarger = opened(networks["compact"])
    enlarge = NetworkEnlarging(
        enlarger, layout, lambda area: cut_out(picture, around.whole, _times(area, 8), around)
    )
    found = torch.cat([enlarge(Rect(y=0, x=x, height=32, width=20)) for x in range(0, 80, 20)], dim=3)
    expected = undivided(enlarger, torch.cat([picture] * 3, dim=3), 2)[..., 640:1280]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 4), st.floats(1.0, 5.0))
def test_a_network_is_used_at_a_divisor_of_its_scale(scale: int, wanted: float) -> None:
    found = network_scale(scale, wanted)
    assert scale % found == 0
    assert found >= 0.9 * wanted or found == scale
    smaller = [each for each in range(1, found) if scale % each == 0]
    assert all(each < 0.9 * wanted for each in smaller)


def spec_of(enlarger: Path | None, **changes: Any) -> Spec:
    values = {"prompt": "a red vase", "steps": 2, "seed": 3, "tile_size": 64, "size": "264x192"}
    return Spec.from_mapping(values | ({} if enlarger is None else {"enlarger": str(enlarger)}) | changes)


def rendered(spec: Spec, group: Group) -> str:
    return render_image(spec, ToyModel(64), group, MemorySink(), device=CPU).root


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        pytest.param("compact", {}, id="compact"),
        pytest.param(
            "swinir",
            {"wrap": "xy", "size": "256x192", "blend": "shift"},
            id="swinir-wrap",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_one_root_on_any_number_of_ranks(
    networks: dict[str, Path], name: str, changes: dict[str, Any]
) -> None:
    spec = spec_of(networks[name], **changes)
    assert any(stage.enlarges_by_network for stage in make_plan(spec, ToyModel(64).info, 1).stages)
    roots = {root for ranks in (1, 3) for root in run_ranks(ranks, lambda group: rendered(spec, group))}
    assert len(roots) == 1
    assert rendered(spec_of(None, **changes), run_ranks(1, lambda group: group)[0]) not in roots


def test_a_small_init_image_is_enlarged_by_the_network(networks: dict[str, Path], tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (96, 132, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "small.png")
    init = {"init": str(tmp_path / "small.png"), "strength": 0.5}
    spec, plain = spec_of(networks["compact"], **init), spec_of(None, **init)
    plan = make_plan(spec, ToyModel(64).info, 1).stages[0]
    assert plan.below is None and plan.stage.enlarges and spec.source is not None
    layout = plan.enlarging_init(spec.source, 2)
    assert layout.below is not None and (layout.below.height, layout.below.width) == (96, 132)
    roots = {root for ranks in (1, 3) for root in run_ranks(ranks, lambda group: rendered(spec, group))}
    assert len(roots) == 1 and not roots & set(run_ranks(1, lambda group: rendered(plain, group)))


def test_the_files_bytes_are_part_of_the_image(networks: dict[str, Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.write_bytes(networks["compact"].read_bytes())
    digests = [spec_of(path).digest("m") for path in (networks["compact"], copy, networks["swinir"], None)]
    assert digests[0] == digests[1] and len(set(digests)) == 3
    # Nodes hold it under its digest, without an ending.
    assert opened(copy).scale == 2
    (tmp_path / "spec.yaml").write_text("prompt: a vase\nenlarger: copy\n")
    assert Spec.from_mapping(read_spec_file(tmp_path / "spec.yaml")).enlarger == EnlargerFile.open(copy)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("other", "is no network that spandrel knows; use a super-resolution network"),
        ("denoiser", "is a RealESRGAN Compact that does not enlarge; use a super-resolution network"),
        ("gray", "is a RealESRGAN Compact of 1 channels; use one for RGB pictures"),
    ],
)
def test_what_is_no_enlarger_is_refused(networks: dict[str, Path], name: str, sentence: str) -> None:
    with pytest.raises(BadInput, match=f"^enlarger: .*{sentence}"):
        check_enlarger(EnlargerFile.open(networks[name]))


def test_a_network_that_draws_noise_is_refused(
    networks: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import spandrel

    copy, plain = tmp_path / "noisy.safetensors", spandrel.ImageModelDescriptor.__call__
    copy.write_bytes(networks["compact"].read_bytes())
    noisy = lambda network, image: plain(network, image + torch.randn_like(image) / 1000)  # noqa: E731
    monkeypatch.setattr(spandrel.ImageModelDescriptor, "__call__", noisy)
    with pytest.raises(BadInput, match="is a RealESRGAN Compact, which draws noise, so that no two pictures"):
        check_enlarger(EnlargerFile.open(copy))


def test_pickles_and_broken_files_are_refused_when_they_are_named(
    networks: dict[str, Path], tmp_path: Path
) -> None:
    torch.save({"weight": torch.zeros(1)}, tmp_path / "net.pth")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "net.safetensors")
    for path, sentence in (
        (tmp_path / "net.pth", "is a pickle, which can run any code when it is opened; convert it"),
        (tmp_path / "net.safetensors", "is a file that is a pickle under the name of safetensors"),
        (tmp_path / "none.safetensors", "is not a file on this machine; check the path"),
    ):
        with pytest.raises(BadInput, match=f"^enlarger: .*{sentence}"):
            spec_of(path)
    changed = tmp_path / "changed.safetensors"
    changed.write_bytes(networks["compact"].read_bytes())
    file = EnlargerFile.open(changed)
    changed.write_bytes(networks["gray"].read_bytes())
    with pytest.raises(BadInput, match="has changed since the job was submitted; restore it"):
        open_enlarger(file, CPU)


def test_weights_that_are_not_whole_are_refused(networks: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    state = load_file(networks["compact"])
    del state["body.2.weight"]
    save_file(state, tmp_path / "cut.safetensors")
    with pytest.raises(BadInput, match=r"^enlarger: .* does not load \("):
        check_enlarger(EnlargerFile.open(tmp_path / "cut.safetensors"))


def test_without_spandrel_one_sentence_says_what_to_install(
    networks: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(networks["compact"].read_bytes())
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(BadInput, match=r"needs spandrel; run pip install 'chorale\[enlarger\]'"):
        check_enlarger(EnlargerFile.open(copy))


def test_a_full_gpu_is_no_fault_of_the_network(
    networks: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import spandrel

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(spandrel.ModelLoader, "load_from_state_dict", full)
    enlarger_module._opened.cache_clear()
    with pytest.raises(torch.OutOfMemoryError):
        opened(networks["compact"])
