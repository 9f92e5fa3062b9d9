"""An image that is rendered again from its manifest is the same, or what differs is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from infra.store.local import LocalStore
from jobs.cli.main import main
from jobs.cli.rerender import differences
from render.distributed import SingleRankGroup
from render.engine import render_image
from render.models import load_adapter
from render.models.folder import read_model_info, resolve_model
from render.numerics import NUMERICS
from render.output.manifest import KEY, Manifest, parse_manifest, root_of
from render.spec import Spec

SPEC = Spec(prompt="a red vase", width=128, height=64, steps=2, seed=5, tile_size=64)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image of the built-in model by one rank in this process, which is the oracle."""
    folder = tmp_path_factory.mktemp("image") / "vase"
    model, device = resolve_model("builtin"), torch.device("cpu")
    adapter = load_adapter(model, device, "float32", read_model_info(model))
    render_image(SPEC, adapter, SingleRankGroup(), LocalStore(folder), device=device)
    return folder


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["rerender", *words])
    answer = capsys.readouterr()
    return int(ended.value.code or 0), answer.out, answer.err


def changed(rendered: Path, folder: Path, **values: Any) -> Path:
    """A manifest alone, with some values changed."""
    document = json.loads((rendered / KEY).read_text())
    for name, value in values.items():
        document[name] = document[name] | value if isinstance(value, dict) else value
    file = folder / "other.json"
    file.write_text(json.dumps(document))
    return file


def test_the_same_image_is_identical_and_nothing_is_kept(
    rendered: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, str(rendered / KEY), "--verify", "--ranks", "2", "--json")
    assert code == 0, err
    result = json.loads(out.splitlines()[-1])
    assert result["identical"] and result["root"] == result["before"] and result["differs"] == []
    assert result["tiles"] > 2 and result["other_tiles"] == 0 and result["manifest"] is None
    assert not (tmp_path / "out").exists()


def test_with_other_weights_nothing_is_rendered(
    rendered: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = changed(rendered, tmp_path, model={"digest": "0" * 64})
    code, out, _ = run(capsys, str(file), "--verify")
    assert code == 3 and "model: was 0000000000000000, is " in out and "Not rendered" in out


@pytest.mark.slow
def test_another_image_is_told_tile_by_tile(
    rendered: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = parse_manifest((rendered / KEY).read_bytes(), "")
    key = manifest.full_level_keys()[0]
    tiles = dict(manifest.tiles) | {key: manifest.tiles[key].model_copy(update={"sha256": "0" * 64})}
    other = {key: {"sha256": "0" * 64, "bytes": tiles[key].bytes}}
    file = changed(rendered, tmp_path, tiles=other, root=root_of(tiles), versions={"torch": "2.0.0"})
    code, out, _ = run(capsys, str(file), "--ranks", "1", "--out", str(tmp_path / "again"))
    assert code == 0 and "torch: was 2.0.0, is " in out
    assert f"Different: 1 of {len(tiles)} tiles" in out and (tmp_path / "again" / KEY).is_file()
    code, _, err = run(capsys, str(file), "--verify", "--out", str(tmp_path / "again"))
    assert code == 2 and "holds this image already" in err


def test_what_differs_is_named_and_what_is_not_known_is_not(rendered: Path) -> None:
    before = parse_manifest((rendered / KEY).read_bytes(), "")
    info = read_model_info(resolve_model("builtin"))
    assert differences(before, SPEC, info, "cpu") == []

    def what(manifest: Manifest, kind: str = "cpu") -> list[str]:
        return [each["what"] for each in differences(manifest, SPEC, info, kind)]

    numerics = before.numerics.model_copy(update={"engine": NUMERICS - 1})
    older = before.model_copy(update={"numerics": numerics, "versions": {"torch": "2.0", "pillow": "9"}})
    assert what(older, "cuda") == ["device", "engine", "torch", "pillow"]
    assert what(before.model_copy(update={"digest": "f" * 64})) == ["spec"]
    bare = before.model_copy(
        update={"numerics": numerics.model_copy(update={"engine": None}), "versions": {}}
    )
    assert what(bare.model_copy(update={"device": ""}), "cuda") == []


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"spec": []}, "damaged"),
        ({"spec": {"lora": [{"path": "/gone.safetensors", "digest": "a" * 64}]}}, "is not here any more"),
        ({"spec": {"sparkle": 1}}, "sparkle"),
    ],
)
def test_what_cannot_be_rendered_again_is_refused(
    rendered: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], values: Any, part: str
) -> None:
    code, _, err = run(capsys, str(changed(rendered, tmp_path, **values)), "--verify")
    assert code == 2 and part in err and err.count("\n") == 1


def test_no_image_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place in ("nowhere", str(tmp_path), "beefbeefbeef"):
        code, _, err = run(capsys, place, "--verify")
        assert code == 2 and err.count("\n") == 1
