"""Which pixels of an init image are kept, and in which colors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from render.errors import BadInput
from render.rect import Rect
from render.spec import Spec
from render.spec.init_image import InitImage
from render.spec.source_image import SourceImage
from tests.support.products import save_product


def _kept(spec: Spec) -> np.ndarray:
    assert spec.kept is not None
    whole = Rect(y=0, x=0, height=spec.height, width=spec.width)
    return spec.kept.kept(whole, spec.width, spec.height)


def test_at_its_own_scale_what_is_kept_is_the_file(tmp_path: Path) -> None:
    photo, mask, cut = save_product(tmp_path, 128, 192)
    rgba = np.asarray(Image.open(cut))
    by_alpha = _kept(Spec.from_mapping({"prompt": "x", "init": str(cut)}))
    assert np.array_equal(by_alpha, rgba)
    by_mask = _kept(Spec.from_mapping({"prompt": "x", "init": str(photo), "mask": str(mask)}))
    full = rgba[..., 3] == 255
    assert np.array_equal(by_mask[..., 3], rgba[..., 3])
    assert np.array_equal(by_mask[full], rgba[full]) and full.sum() > 1000


def test_an_edge_has_the_color_of_the_product_alone(tmp_path: Path) -> None:
    # A gray disc on white, with the soft edge of a photograph.
    y, x = np.mgrid[:96, :96]
    cover = np.clip(30.5 - np.hypot(y - 47.5, x - 47.5), 0, 1)
    photo = (cover * 90 + (1 - cover) * 255 + 0.5).astype(np.uint8)
    Image.fromarray(photo).convert("RGB").save(tmp_path / "photo.png")
    Image.fromarray(((1 - cover) * 255 + 0.5).astype(np.uint8)).save(tmp_path / "mask.png")
    names = {name: str(tmp_path / f"{name}.png") for name in ("photo", "mask")}
    found = _kept(Spec.from_mapping({"prompt": "x", "init": names["photo"], "mask": names["mask"]}))
    edge = (found[..., 3] > 60) & (found[..., 3] < 255)
    assert edge.sum() > 50 and np.abs(found[..., 0][edge].astype(int) - 90).max() <= 6


def test_odd_sides_are_kept_at_their_own_scale(tmp_path: Path) -> None:
    _, _, cut = save_product(tmp_path, 101, 133)
    spec = Spec.from_mapping({"prompt": "x", "init": str(cut)})
    assert (spec.width, spec.height, spec.fit) == (128, 96, "crop")
    assert np.array_equal(_kept(spec), np.asarray(Image.open(cut))[3:99, 3:131])


def test_scaling_bleeds_nothing_in(tmp_path: Path) -> None:
    rgba = np.zeros((64, 64, 4), np.uint8)
    rgba[..., 1] = 255  # what is transparent is green, as nobody should ever see
    rgba[16:48, 16:48] = [200, 0, 0, 255]
    Image.fromarray(rgba).save(tmp_path / "cut.png")
    for size in ("128x128", "32x32"):
        found = _kept(Spec.from_mapping({"prompt": "x", "init": str(tmp_path / "cut.png"), "size": size}))
        seen = found[..., 3] > 8
        assert np.abs(found[seen][:, :3].astype(int) - [200, 0, 0]).max() <= 12


def test_16_bits_are_kept_rounded(tmp_path: Path) -> None:
    import pyvips

    deep = np.zeros((64, 64, 4), np.uint16)
    deep[16:48, 16:48] = [40000, 20000, 10000, 65535]
    deep[32:48, 16:48, 3] = 65534
    pyvips.Image.new_from_array(deep).copy(interpretation="rgb16").write_to_file(str(tmp_path / "deep.png"))
    found = _kept(Spec.from_mapping({"prompt": "x", "init": str(tmp_path / "deep.png")}))
    assert np.abs(found[20, 20, :3].astype(int) - [156, 78, 39]).max() <= 1
    assert found[20, 20, 3] == 255 and found[40, 20, 3] < 255 and found[0, 0, 3] == 0


@pytest.mark.parametrize(
    ("mask", "keeps"), [(None, True), ("none", False), ("alpha", True)], ids=["unsaid", "none", "alpha"]
)
def test_transparency_is_a_mask_unless_told_otherwise(mask: str | None, keeps: bool, tmp_path: Path) -> None:
    _, _, cut = save_product(tmp_path, 64, 64)
    values = {"prompt": "x", "init": str(cut)} | ({"mask": mask} if mask else {})
    assert (Spec.from_mapping(values).kept is not None) is keeps


def test_an_init_image_that_is_stored_gets_no_mask(tmp_path: Path) -> None:
    _, _, cut = save_product(tmp_path, 64, 64)
    stored = Spec.from_mapping({"prompt": "x", "init": InitImage.open(cut).to_dict()})
    assert stored.mask is None and stored.source_type == "trained"
    assert Spec.from_mapping({"prompt": "x", "init": str(cut)}).source_type == "composite"


def test_masks_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    photo, _, cut = save_product(tmp_path, 64, 96)
    Image.new("L", (64, 64)).save(tmp_path / "square.png")
    for mask, words in (("square.png", "is 64x64, the init image 96x64"), ("cut.png", "has transparency")):
        with pytest.raises(BadInput, match=words):
            Spec.from_mapping({"prompt": "x", "init": str(photo), "mask": str(tmp_path / mask)})
    assert cut.exists()


def test_the_mask_is_part_of_the_digest_and_its_path_is_not(tmp_path: Path) -> None:
    photo, mask, _ = save_product(tmp_path, 64, 64)
    (tmp_path / "copy.png").write_bytes(mask.read_bytes())
    specs = [
        Spec.from_mapping({"prompt": "x", "init": str(photo)} | ({"mask": str(each)} if each else {}))
        for each in (mask, tmp_path / "copy.png", None)
    ]
    digests = [spec.digest("m") for spec in specs]
    assert digests[0] == digests[1] != digests[2]
    assert Spec.from_mapping(specs[0].to_dict()) == specs[0]


def test_outpainting_fades_only_inside_the_canvas(tmp_path: Path) -> None:
    photo, _, _ = save_product(tmp_path, 128, 128)
    spec = Spec.from_mapping({"prompt": "x", "init": str(photo), "size": "192x128", "fit": "outpaint"})
    weight = _kept(spec)[..., 3]
    assert (weight[:, :32] == 0).all() and (weight[:, 160:] == 0).all()
    assert weight[0, 96] == weight[127, 96] == 255
    assert (np.diff(weight[64, 32:60].astype(int)) >= 0).all() and weight[64, 33] < 40
    assert isinstance(spec.source, SourceImage) and spec.source.own_scale
