"""`chorale export` with a batch, a channel, or a job's id, on a farm whose images are finished."""

import json
from pathlib import Path

import pytest
from PIL import Image

from jobs.cli.main import main
from render.models.model_paths import find_model_paths, model_info
from render.spec import Spec
from tests.support.finished_batch import finished_batch


@pytest.fixture
def batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Three rows, two of them finished."""
    return finished_batch(tmp_path, monkeypatch, ("Vase/rot", "Vase/rot-s2", "mug"), done=2)


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["export", *words])
    return int(ended.value.code or 0)


def test_each_finished_image_becomes_a_file_under_its_name(
    batch: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = str(tmp_path / "out" / "{base_id}_{n}.jpg")
    assert run("--batch", batch, target, "--size", "64x64", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert (len(answer["files"]), answer["missing"], answer["broken"]) == (2, 1, 0)
    made = sorted((tmp_path / "out").iterdir())
    assert [file.name for file in made] == ["Vase_rot_1.jpg", "Vase_rot_2.jpg"]
    for file in made:
        with Image.open(file) as image:
            assert (image.size, image.format) == ((64, 64), "JPEG")
    before = [file.read_bytes() for file in made]
    assert run("--batch", batch, target, "--size", "64x64") == 2
    assert "use --force" in capsys.readouterr().err
    assert run("--batch", batch, target, "--size", "64x64", "--force") == 0
    assert [file.read_bytes() for file in made] == before


def test_two_images_never_share_a_file(
    batch: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("{base_id}.jpg", "all.jpg", "{sku}.jpg"):
        assert run("--batch", batch, str(tmp_path / "out" / name), "--size", "64x64") == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_broken_rule_is_told_and_written(
    batch: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.jsonl"
    (tmp_path / "out").mkdir()
    words = ("--batch", batch, str(tmp_path / "out"), "--channel", "shopify", "--report", str(report))
    assert run(*words) == 0, "shopify's rules do not forbid enlarging"
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["Vase_rot-1.jpg", "Vase_rot-2.jpg"]
    lines = [json.loads(line) for line in report.read_text().splitlines()]
    assert [line["passes"] for line in lines] == [True, True]
    google = (str(tmp_path / "google_{n}.jpg"), "--channel", "google", "--report", str(report))
    assert run("--batch", batch, *google) == 3
    shown = capsys.readouterr().out
    assert "not enlarged" in shown and "128x96" in shown
    rules = {rule["rule"]: rule["passes"] for rule in json.loads(report.read_text().splitlines()[0])["rules"]}
    assert rules["marked as AI"] and rules["bytes"] and not rules["not enlarged"]


def test_a_jobs_id_is_an_image(batch: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = Spec(prompt="a vase", seed=1, width=128, height=96, steps=2, tile_size=64)
    job = spec.digest(model_info(find_model_paths("builtin", None)).digest)[:16]
    assert run(job, str(tmp_path / "whole.png")) == 0
    assert run(job[:8], str(tmp_path / "small.webp"), "--size", "32x32") == 0
    with Image.open(tmp_path / "whole.png") as whole, Image.open(tmp_path / "small.webp") as small:
        assert (whole.size, small.size) == ((128, 96), (32, 32))
    capsys.readouterr()
    assert run("0123456789abcdef", str(tmp_path / "none.png")) == 2
    assert "neither a folder nor the id of a job" in capsys.readouterr().err


def test_a_batch_without_images_and_an_unknown_one_are_told(
    batch: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--batch", "000000000000", str(tmp_path / "{n}.jpg"), "--size", "64") == 2
    assert "is unknown" in capsys.readouterr().err
