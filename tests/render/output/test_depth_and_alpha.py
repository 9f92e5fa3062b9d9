"""Tiles of 16 bits, with transparency, in another profile: from the decoder's float to the exported file."""

from __future__ import annotations

import io
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pyvips
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from infra.store.local import LocalStore
from render.canvas import LatentRegion
from render.distributed import Group, SingleRankGroup
from render.engine import ImageReport, render_image
from render.errors import BadInput, RenderFailed
from render.output.block_journal import BlockJournal
from render.output.encode import ENDINGS, SRGB_TO_P3
from render.output.export import export_image, in_srgb8, joined_image
from render.output.kept_check import check_file
from render.output.manifest import Manifest, parse_manifest
from render.output.pixels import Pixels, halved, narrowed
from render.output.pyramid import publish_pyramid
from render.output.verify import verify_image
from render.plan.plan import make_plan
from render.plan.topology import Topology
from render.rendered_image import RenderedImage
from render.spec import Spec
from tests.support.groups import run_ranks
from tests.support.models import ToyModel
from tests.support.products import save_product
from tests.support.sinks import MemorySink

CPU = torch.device("cpu")
HEIGHT, WIDTH = 192, 264


@pytest.fixture(scope="module")
def cuts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A product cut out, in 8 bits and in 16 bits that no 8 bits can hold."""
    folder = tmp_path_factory.mktemp("cuts")
    cut = save_product(folder, HEIGHT, WIDTH)[2]
    rgba = np.asarray(Image.open(cut)).astype(np.uint16) * 257
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    rgba[..., :3] = np.clip(rgba[..., :3].astype(int) + ((7 * x + 3 * y) % 251)[..., None], 0, 65535)
    soft = (rgba[..., 3] > 0) & (rgba[..., 3] < 65535)
    rgba[..., 3] = np.where(soft, rgba[..., 3] ^ 0x55, rgba[..., 3])
    pyvips.Image.new_from_array(rgba, interpretation="rgb16").write_to_file(str(folder / "cut16.png"))
    return {"8": cut, "16": folder / "cut16.png", "photo": folder / "photo.png", "mask": folder / "mask.png"}


def read(file: Path | bytes) -> Pixels:
    """An image file's own numbers, as libvips reads them."""
    vips = pyvips.Image
    image = vips.new_from_buffer(file, "") if isinstance(file, bytes) else vips.new_from_file(str(file))
    return image.numpy()


def spec_of(init: Path | None, **changes: Any) -> Spec:
    values = {"prompt": "a red vase", "steps": 2, "seed": 3, "tile_size": 64}
    return Spec.from_mapping(values | ({} if init is None else {"init": str(init)}) | changes)


def level_of(sink: MemorySink, spec: Spec, level: int, width: int, height: int) -> Pixels:
    rows, side, found = [], spec.tile_size, sink.files
    for row in range(-(-height // side)):
        keys = [f"image_files/{level}/{col}_{row}.{ENDINGS[spec.format]}" for col in range(-(-width // side))]
        rows.append(np.concatenate([read(found[key]) for key in keys], axis=1))
    return np.concatenate(rows, axis=0)


def published(spec: Spec, group: Group, sink: MemorySink, journal: BlockJournal | None = None) -> Any:
    """The pyramid of random latents; what is kept lies over them."""
    model, draw = ToyModel(), torch.Generator().manual_seed(1)
    canvas = Topology(height=spec.height // 8, width=spec.width // 8)
    latents = torch.randn((4, canvas.height, canvas.width), generator=draw)
    region = LatentRegion(latents=latents, area=canvas.whole, canvas=canvas, kept=spec.kept)
    plan = make_plan(spec, model.info, group.world_size)
    return publish_pyramid(region, model, plan, group, sink, device=CPU, journal=journal)


def rendered(spec: Spec, group: Group, sink: Any) -> ImageReport:
    return render_image(spec, ToyModel(64), group, sink, device=CPU)


@pytest.mark.parametrize("form", ["png", "tiff"])
def test_tiles_of_16_bits_are_the_decoders_numbers(form: str) -> None:
    spec, sink = spec_of(None, width=1000, height=616, format=form, bit_depth=16), MemorySink()
    report = published(spec, SingleRankGroup(), sink)
    latents = torch.randn((4, 77, 125), generator=torch.Generator().manual_seed(1))
    whole = (ToyModel().decode(latents[None])[0].double() * 65535).round().permute(1, 2, 0).numpy()
    layout, expected = report.layout, whole.astype(np.uint16)
    for level in range(layout.top_level, layout.top_level - 6, -1):
        width, height = layout.size_at(level)
        found = level_of(sink, spec, level, width, height)
        # Tiles are decoded one by one, and the last bit of a float may decide how one is rounded.
        most = 1 if level == layout.top_level else 0
        assert found.dtype == np.uint16 and np.abs(found.astype(int) - expected).max() <= most
        # The mean of four, rounded; odd edges repeated.
        even = np.pad(found, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge").astype(float)
        means = (even[0::2, 0::2] + even[1::2, 0::2] + even[0::2, 1::2] + even[1::2, 1::2]) / 4
        expected = np.floor(means + 0.5).astype(np.uint16)
    shown = narrowed(whole.astype(np.uint16))
    assert (report.darkest, report.brightest) == (shown.min(), shown.max())
    tile = pyvips.Image.new_from_buffer(sink.files[f"image_files/10/0_0.{ENDINGS[form]}"], "")
    assert b"trainedAlgorithmicMedia" in tile.get("xmp-data") and tile.get_typeof("icc-profile-data")


@pytest.mark.parametrize("form", ["png", "tiff"])
def test_kept_pixels_of_16_bits_are_the_files_numbers(cuts: dict[str, Path], form: str) -> None:
    spec, sink = spec_of(cuts["16"], format=form, bit_depth=16), MemorySink()
    report = rendered(spec, SingleRankGroup(), sink)
    given, found = read(cuts["16"]), level_of(sink, spec, 9, WIDTH, HEIGHT)
    full = given[..., 3] == 65535
    assert np.array_equal(found[full], given[full][:, :3]) and (given[full] % 257 != 0).any()
    kept = report.manifest.kept
    assert kept is not None and kept.own_scale and kept.pixels == full.sum() > 1000
    assert report.manifest.format == form


def test_kept_pixels_of_8_bits_are_widened(cuts: dict[str, Path]) -> None:
    spec, sink = spec_of(cuts["photo"], mask=str(cuts["mask"]), bit_depth=16), MemorySink()
    rendered(spec, SingleRankGroup(), sink)
    given, full = read(cuts["photo"]).astype(np.uint16) * 257, read(cuts["mask"])[..., 0] == 0
    assert np.array_equal(level_of(sink, spec, 9, WIDTH, HEIGHT)[full], given[full])


def test_pixels_that_carry_the_srgb_profile_keep_their_numbers(cuts: dict[str, Path], tmp_path: Path) -> None:
    marked = pyvips.Image.new_from_file(str(cuts["16"])).copy()
    profile = pyvips.Image.profile_load("srgb")
    marked.set_type(pyvips.GValue.blob_type, "icc-profile-data", profile)
    marked.write_to_file(str(tmp_path / "marked.png"))
    source, plain = (spec_of(path, bit_depth=16).kept for path in (tmp_path / "marked.png", cuts["16"]))
    assert source is not None and plain is not None
    whole = replace(source.rect, x=0, y=0)
    assert np.array_equal(source.kept(whole, WIDTH, HEIGHT), plain.kept(whole, WIDTH, HEIGHT))


@pytest.mark.parametrize(
    ("form", "depth"), [("png", 16), ("webp", 8), ("tiff", 8)], ids=["png-16", "webp-8", "tiff-8"]
)
def test_transparency_is_kept(cuts: dict[str, Path], tmp_path: Path, form: str, depth: int) -> None:
    spec = spec_of(cuts[str(depth)], format=form, bit_depth=depth, alpha="keep")
    folder = tmp_path / "image"
    rendered(spec, SingleRankGroup(), LocalStore(folder))
    manifest = read_manifest(folder)
    assert verify_image(LocalStore(folder), manifest).passes
    whole = joined_image(folder, manifest, (0, 0, WIDTH, HEIGHT)).numpy()
    given = read(cuts[str(depth)])
    assert whole.dtype == given.dtype and np.array_equal(whole[..., 3], given[..., 3])
    # The product's own colors, also where the edge is soft: it is mixed when the file is shown.
    seen = given[..., 3] > 0
    assert np.array_equal(whole[seen], given[seen])
    assert (whole[~seen][:, :3] != 0).any()
    exported = export_image(folder, manifest, tmp_path / "whole.png")
    assert np.array_equal(read(exported), whole)
    flat = read(export_image(folder, manifest, tmp_path / "whole.jpg"))
    assert flat.shape == (HEIGHT, WIDTH, 3) and flat.dtype == np.uint8 and (flat[0, 0] > 250).all()
    picture = RenderedImage(folder=folder, manifest=manifest).pil()
    assert picture.mode == "RGBA" and np.array_equal(
        np.asarray(picture)[..., 3], given[..., 3] if depth == 8 else given[..., 3] >> 8
    )
    preview = read((folder / "preview.webp").read_bytes())
    assert preview.shape[2] == 4 and preview[..., 3].min() == 0 and preview[..., 3].max() > 200


def read_manifest(folder: Path) -> Manifest:
    return parse_manifest((folder / "manifest.json").read_bytes(), str(folder))


def test_an_image_made_from_a_transparent_one_has_its_transparency(cuts: dict[str, Path]) -> None:
    spec = spec_of(cuts["8"], mask="none", alpha="keep", fit="pad", width=264, height=264)
    sink = MemorySink()
    rendered(spec, SingleRankGroup(), sink)
    found, given = level_of(sink, spec, 9, 264, 264), read(cuts["8"])
    assert np.array_equal(found[36:228, :, 3], given[..., 3]) and not found[:36, :, 3].any()
    assert (found[36:228][given[..., 3] == 255][:, :3] != given[given[..., 3] == 255][:, :3]).any()


@pytest.mark.parametrize("changes", [{"format": "png", "bit_depth": 16}, {"format": "webp"}], ids=["16", "8"])
def test_ranks_do_not_change_a_byte(cuts: dict[str, Path], changes: dict[str, Any]) -> None:
    spec = spec_of(cuts["16"], alpha="keep", **changes)
    alone, together = MemorySink(), MemorySink()
    published(spec, SingleRankGroup(), alone)
    run_ranks(3, lambda group: published(spec, group, together))
    assert together.files == alone.files


def test_blocks_that_are_done_are_not_made_again(cuts: dict[str, Path]) -> None:
    spec = spec_of(cuts["16"], alpha="keep", bit_depth=16, width=1040, height=760, fit="pad")
    sink = MemorySink()
    run = partial(published, spec, SingleRankGroup(), sink, BlockJournal(sink, "one"))
    first, files = run(), dict(sink.files)
    for key in [key for key in sink.files if key.startswith("image_files/")]:
        # Blocks hold the levels from 8 on.
        if int(key.split("/")[1]) < 8:
            del sink.files[key]
    puts: list[str] = []
    sink.put = lambda key, data, *rest, **names: (  # type: ignore[method-assign]
        puts.append(key),
        MemorySink.put(sink, key, data, *rest, **names),
    )[1]
    again = run()
    assert again.tiles == first.tiles and sink.files == files
    assert not any("image_files/11/" in key for key in puts)


def test_colors_in_display_p3(tmp_path: Path) -> None:
    folders = {}
    for icc in ("srgb", "p3"):
        spec = spec_of(None, width=256, height=128, icc=icc, bit_depth=16)
        rendered(spec, SingleRankGroup(), LocalStore(tmp_path / icc))
        folders[icc] = tmp_path / icc, read_manifest(tmp_path / icc)
    files = [
        pyvips.Image.new_from_file(str(export_image(*folders[icc], tmp_path / f"{icc}.png")))
        for icc in folders
    ]
    assert files[1].get("icc-profile-data") == pyvips.Image.profile_load("p3")
    plain, wide = (each.numpy() / 65535 for each in files)
    light = (
        np.where(plain <= 0.04045, plain / 12.92, ((plain + 0.055) / 1.055) ** 2.4) @ np.array(SRGB_TO_P3).T
    )
    expected = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    assert np.abs(wide - expected).max() < 2 / 65535 and np.abs(wide - plain).max() > 0.01
    # What the profile says of the numbers.
    seen = files[1].icc_transform("srgb", embedded=True, depth=16).numpy() / 65535
    assert np.abs(seen - plain).mean() < 1 / 255
    folder, manifest = folders["p3"]
    shown = in_srgb8(joined_image(folder, manifest, (0, 0, 256, 128)), manifest).numpy()
    assert shown.dtype == np.uint8 and np.abs(shown - files[0].numpy() / 257).max() <= 1
    tile = spec_of(None, width=256, height=128, icc="srgb", steps=1)
    sink = MemorySink()
    rendered(tile, SingleRankGroup(), sink)
    with Image.open(io.BytesIO(sink.files["image_files/8/0_0.png"])) as opened:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(opened.info["icc_profile"]))
    assert "sRGB" in ImageCms.getProfileDescription(profile)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 9), st.integers(1, 9), st.sampled_from([np.uint8, np.uint16]), st.integers(0, 2**32 - 1)
)
def test_what_is_not_seen_colors_nothing(height: int, width: int, kind: Any, seed: int) -> None:
    draw = np.random.default_rng(seed)
    top = np.iinfo(kind).max
    pixels = draw.integers(0, top + 1, (height, width, 4)).astype(kind)
    pixels[..., 3] = draw.choice(np.array([0, 1, top // 2, top], kind), (height, width))
    found = halved(pixels)
    even = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge").astype(object)
    for y, x in np.ndindex(found.shape[:2]):
        four = even[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].reshape(4, 4)
        opacity = sum(four[:, 3])
        assert found[y, x, 3] == (opacity + 2) // 4
        weights = four[:, 3] if opacity else np.array([1, 1, 1, 1], object)
        for band in range(3):
            assert found[y, x, band] == (sum(four[:, band] * weights) + sum(weights) // 2) // sum(weights)


def test_16_bits_are_rounded_to_8() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1)
    assert np.array_equal(narrowed(values), np.floor(values / 257 + 0.5).astype(np.uint8))


def test_a_changed_number_of_16_bits_is_found(cuts: dict[str, Path]) -> None:
    pixels = read(cuts["16"]).copy()
    data = cuts["16"].read_bytes()
    check_file(data, pixels)
    pixels[5, 5, 0] ^= 1
    with pytest.raises(RenderFailed, match="not encoded to the byte"):
        check_file(data, pixels)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"bit_depth": 16, "format": "webp"},
            "bit_depth: 16 does not go with webp; use --format",
        ),
        ({"bit_depth": 12}, "bit_depth: 12 is unknown; use one of 8, 16"),
        ({"icc": "adobe"}, "icc: 'adobe' is unknown; use one of auto, srgb, p3"),
        ({"alpha": "keep"}, "alpha: 'keep' needs an init image with transparency, or a mask"),
        (
            {"alpha": "keep", "init": "photo"},
            "keeps the init image's transparency, and it has none",
        ),
        ({"alpha": "keep", "init": "photo", "fit": "outpaint"}, "alpha: 'keep' keeps the init image's"),
        ({"alpha": "keep", "init": "8", "format": "jpeg"}, "cannot keep pixels to the byte"),
        (
            {"alpha": "keep", "init": "8", "mask": "none", "format": "jpeg"},
            "does not go with jpeg; use",
        ),
        ({"alpha": "keep", "init": "8", "shadow": 0.5}, "shadow.*does not go with --alpha keep"),
        ({"icc": "p3", "init": "8"}, "icc: 'p3' would change what is kept"),
    ],
)
def test_what_does_not_go_together_is_refused(
    cuts: dict[str, Path], changes: dict[str, Any], sentence: str
) -> None:
    init = cuts[changes.pop("init")] if "init" in changes else None
    with pytest.raises(BadInput, match=sentence):
        spec_of(init, **changes)


def test_specs_without_them_are_as_before() -> None:
    names = {"alpha", "bit_depth", "icc"}
    assert not names & set(Spec(prompt="x").to_dict())
    assert names <= set(spec_of(None, bit_depth=16, icc="p3").to_dict()) | {"alpha"}
