"""Models that look at pictures: equal to the stock pipelines at one window; several windows see the whole
picture or each its own part, on any number of ranks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from render.distributed import Group, SingleRankGroup
from render.engine import render_image
from render.errors import BadInput
from render.models import load_adapter, read_model_info
from render.models.flux_kontext import FluxKontext
from render.models.qwen_image_edit import PictureProcessor, QwenImageEdit
from render.plan.stages import make_stages
from render.spec import Spec
from render.spec.reference import ReferencePicture
from tests.render.models.recorded_calls import Recorded
from tests.render.models.test_transformers_equal_stock import (
    NEGATIVE,
    PROMPT,
    STEPS,
    Case,
    as_given,
    as_returned,
    our_latents,
    unit_noise,
)
from tests.render.models.tiny_transformers import native_size, save
from tests.support.groups import run_ranks
from tests.support.sinks import MemorySink

CPU = torch.device("cpu")
KONTEXT = {"max_area": 64 * 64, "_auto_resize": False}
CASES = (
    (Case("flux-kontext", 3.5, guidance_scale=3.5, **KONTEXT), ["photo"]),
    (Case("qwen-image-edit", 3.0, true_cfg_scale=3.0, negative_prompt=NEGATIVE), ["photo"]),
    (Case("qwen-image-edit", 1.0, true_cfg_scale=1.0), ["odd"]),
    (Case("qwen-image-edit-plus", 3.0, true_cfg_scale=3.0, negative_prompt=NEGATIVE), ["photo"]),
    (Case("qwen-image-edit-plus", 1.0, true_cfg_scale=1.0), ["photo", "other"]),
    (Case("flux2", 4.0, guidance_scale=4.0), ["photo", "other"]),
    (Case("flux2-klein", 4.0, guidance_scale=4.0), ["photo"]),
)
EDIT = "diffusers.pipelines.qwenimage.pipeline_qwenimage_edit"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found, draw = tmp_path_factory.mktemp("references"), np.random.default_rng(2)
    for name, side in (("photo", 64), ("other", 64), ("large", 128), ("odd", 100)):
        shape = (60 if name == "odd" else side, side, 3)
        pixels = draw.integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(found / f"{name}.png")
    Image.new("RGB", (96, 64)).save(found / "wide.png")
    return found


@lru_cache
def loaded(root: Path, name: str) -> Any:
    return load_adapter(save(name, root / name), CPU, "float32")


@contextmanager
def at_the_tiny_size(side: int) -> Iterator[None]:
    """The stock pipelines of Qwen-Image-Edit scale pictures to areas that are written into their code."""
    from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit import calculate_dimensions

    def scaled(area: int, shape: float) -> Any:
        return calculate_dimensions(area * (side / 1024) ** 2, shape)

    with ExitStack() as stack:
        stack.enter_context(patch(f"{EDIT}.calculate_dimensions", scaled))
        stack.enter_context(patch(f"{EDIT}_plus.calculate_dimensions", lambda *given: scaled(*given)[:2]))
        yield


@pytest.mark.parametrize(("case", "names"), CASES, ids=lambda each: getattr(each, "name", str(each)))
def test_latents_equal_those_of_the_stock_pipeline(root: Path, case: Case, names: list[str]) -> None:
    adapter, side = loaded(root, case.name), native_size(case.name)
    paths = [root / f"{name}.png" for name in names]
    pictures = tuple(ReferencePicture.open(path) for path in paths)
    noise = unit_noise(adapter)
    given: dict[str, Any] = {}
    if (root / case.name / "processor").is_dir():
        given["processor"] = PictureProcessor.from_folder(root / case.name / "processor")
    pipeline = DiffusionPipeline.from_pretrained(
        root / case.name, local_files_only=True, low_cpu_mem_usage=False, **given
    )
    pipeline.set_progress_bar_config(disable=True)
    images = [Image.open(path).convert("RGB") for path in paths]
    with at_the_tiny_size(side):
        theirs = pipeline(
            image=images if len(images) > 1 else images[0],
            prompt=PROMPT,
            height=side,
            width=side,
            num_inference_steps=STEPS,
            latents=as_given(case, noise),
            output_type="latent",
            **case.arguments,
        ).images
    limit = 1e-5 * max(1.0, float(theirs.std()))
    assert theirs.std() > 0.1
    # At one window a picture of its size is the same whole and aligned.
    for mode in ("style",) if names == ["odd"] else ("style", "aligned"):
        ours = our_latents(adapter, case, reference=pictures, reference_mode=mode)
        assert (as_returned(case, adapter, ours) - theirs).abs().max() <= limit
    blank = tuple(ReferencePicture.open(root / "wide.png") for _ in pictures)
    other = our_latents(adapter, case, reference=blank)
    assert (as_returned(case, adapter, other) - theirs).abs().max() > 100 * limit


@pytest.mark.parametrize(
    "name", ["flux-kontext", "qwen-image-edit", pytest.param("flux2-klein", marks=pytest.mark.slow)]
)
def test_windows_see_the_whole_or_their_own_part_on_any_number_of_ranks(root: Path, name: str) -> None:
    folder = save(name, root / name)
    info = read_model_info(folder)
    adapters = [load_adapter(folder, CPU, "float32", info) for _ in range(3)]
    picture = root / "large.png"
    whole = torch.from_numpy(np.asarray(Image.open(picture)).copy()).permute(2, 0, 1)[None].float() / 255
    roots = set()
    for mode in ("style", "aligned"):
        spec = Spec.from_mapping(
            {
                "prompt": PROMPT,
                "size": "128x128",
                "steps": 2,
                "tile_size": 64,
                "reference": [str(picture)],
                "reference_mode": mode,
            }
        )
        recorded = Recorded()

        def render(group: Group, calls: Any = None, spec: Spec = spec) -> str:
            adapter = adapters[group.rank]
            return render_image(spec, adapter, group, MemorySink(), device=CPU, calls=calls).root

        alone = render(SingleRankGroup(), recorded)
        assert set(run_ranks(3, render)) == {alone}
        roots.add(alone)
        last = [call for call in recorded.calls if call.places[0].image_height == 128]
        windows = {window for call in last for window in call.windows}
        assert len(windows) >= 4
        shown = [each for call in last for each in zip(call.windows, call.references[0], strict=True)]
        pixel = info.scale_factor
        if mode == "style":
            assert all(torch.equal(latents, shown[0][1]) for _, latents in shown)
            continue
        for window, latents in shown:
            rows = slice(window.y * pixel, (window.y + window.height) * pixel)
            cols = slice(window.x * pixel, (window.x + window.width) * pixel)
            assert torch.equal(adapters[0].encode(whole[:, :, rows, cols])[0], latents)
    assert len(roots) == 2


def test_a_whole_picture_has_the_size_that_the_pipeline_gives_it() -> None:
    from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit import calculate_dimensions

    info: Any = SimpleNamespace(native_size=1024, scale_factor=8, patch=2)
    kontext, edit = FluxKontext.__new__(FluxKontext), QwenImageEdit.__new__(QwenImageEdit)
    kontext.info = edit.info = info
    assert kontext.reference_size(3000, 2000) == (1248, 832)
    assert kontext.reference_size(500, 500) == (1024, 1024)
    assert kontext.reference_size(100, 1000) == (672, 1568)
    for size in ((3000, 2000), (500, 500), (640, 1000)):
        assert edit.reference_size(*size) == calculate_dimensions(1024 * 1024, size[0] / size[1])[:2]


def test_what_does_not_fit_is_refused_when_planned(root: Path) -> None:
    photo, wide = str(root / "photo.png"), str(root / "wide.png")

    def plan(name: str, **values: Any) -> None:
        info = loaded(root, name).info
        make_stages(Spec.from_mapping({"prompt": "x", "model": "m", "size": "64x64"} | values), info)

    with pytest.raises(BadInput, match=r"^reference: .*photo.png' is nothing that m looks at; leave it out"):
        plan("flux", reference=[photo])
    with pytest.raises(BadInput, match=r"^reference: .*other.png' is one more than m takes; give 1"):
        plan("flux-kontext", reference=[photo, str(root / "other.png")])
    with pytest.raises(BadInput, match=r"^reference: 0 pictures are too few for m; give --reference IMAGE"):
        plan("qwen-image-edit")
    with pytest.raises(BadInput, match=r"^reference_mode: 'aligned' needs a picture"):
        plan("flux2", reference_mode="aligned")
    with pytest.raises(BadInput, match=r"^reference: .* is 96x64, another shape than 64x64; give the size"):
        plan("flux2", reference=[wide], reference_mode="aligned")
    plan("flux2", reference=[wide])
    with pytest.raises(BadInput, match=r"^dilated: 0.5 does not go with reference pictures"):
        plan("flux2", reference=[photo], dilated=0.5)
    with pytest.raises(BadInput, match=r"^reference: 'nowhere.png' cannot be read"):
        plan("flux2", reference=["nowhere.png"])


def test_a_path_plays_no_part_in_the_digest_and_no_field_is_there_by_default(
    root: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved.png"
    moved.write_bytes((root / "photo.png").read_bytes())
    one, two = (
        Spec.from_mapping({"prompt": "x", "reference": [str(path)]}) for path in (root / "photo.png", moved)
    )
    assert one.digest("m") == two.digest("m") != Spec.from_mapping({"prompt": "x"}).digest("m")
    assert one.digest("m") != one.with_changes(reference_mode="aligned", width=64, height=64).digest("m")
    assert not {"reference", "reference_mode"} & set(Spec.from_mapping({"prompt": "x"}).to_dict())
    assert Spec.from_mapping(one.to_dict()) == one
    assert one.assets == one.reference
