"""The main job as a user runs it, with real ranks."""

import json
import shutil
import tempfile
from pathlib import Path

import pytest

from tests.support.cli import chorale, last_json

SMALL = ("render", "a red vase on a wooden table", "--size", "256x192", "--steps", "3", "--tile-size", "128")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("renders") / "image"
    # Short, since there are sockets in it.
    with tempfile.TemporaryDirectory(prefix="r-") as temporary, pytest.MonkeyPatch.context() as patched:
        patched.setenv("TMPDIR", temporary)
        finished = chorale(*SMALL, "--ranks", "2", "--out", str(out), "--json")
        assert finished.returncode == 0, finished.stderr
        left = [path.name for path in Path(temporary).iterdir() if not path.name.startswith("torchinductor")]
        assert left == [], "a render leaves no temporary files"
    assert {"digest", "root", "manifest", "seconds"} <= last_json(finished.stdout).keys()
    return out


def test_a_finished_image_is_not_rendered_again(image: Path) -> None:
    manifest = (image / "manifest.json").stat()
    again = chorale(*SMALL, "--ranks", "1", "--out", str(image), "--json")
    assert again.returncode == 0
    assert last_json(again.stdout)["already"] is True
    assert (image / "manifest.json").stat().st_mtime_ns == manifest.st_mtime_ns


def test_an_unfinished_image_of_the_same_spec_is_finished(image: Path, tmp_path: Path) -> None:
    root = json.loads((image / "manifest.json").read_text())["root"]
    shutil.copytree(image, tmp_path / "half")
    (tmp_path / "half" / "manifest.json").unlink()
    next((tmp_path / "half" / "image_files").rglob("*.png")).write_bytes(b"torn")
    resumed = chorale(*SMALL, "--ranks", "1", "--out", str(tmp_path / "half"), "--json")
    assert resumed.returncode == 0, resumed.stderr
    assert last_json(resumed.stdout)["root"] == root
    assert chorale("verify", str(tmp_path / "half")).returncode == 0


def test_verify_tells_and_exits_with_3(image: Path, tmp_path: Path) -> None:
    shutil.copytree(image, tmp_path / "hurt")
    (tmp_path / "hurt" / "image_files" / "8" / "0_0.png").unlink()
    report = chorale("verify", str(tmp_path / "hurt"))
    assert report.returncode == 3
    assert "missing: image_files/8/0_0.png" in report.stdout
    assert last_json(chorale("verify", str(tmp_path / "hurt"), "--json").stdout)["passes"] is False


def test_export_and_manifest(image: Path, tmp_path: Path) -> None:
    assert chorale("export", str(image), str(tmp_path / "vase.tif")).returncode == 0
    assert chorale("export", str(image), str(tmp_path / "vase.tif")).returncode == 2
    manifest = json.loads((image / "manifest.json").read_text())
    assert manifest["spec"]["prompt"] == "a red vase on a wooden table"
    assert manifest["ranks"] == 2
    assert {"torch", "diffusers", "chorale"} <= manifest["versions"].keys()
    assert (image / "image.dzi").exists()
    assert (image / "preview.webp").exists()


def test_plan_and_doctor_speak_json() -> None:
    plan = last_json(chorale("plan", "a red vase", "--size", "2048x2048", "--ranks", "3", "--json").stdout)
    assert plan["stages"][-1]["width"] == 2048
    assert len(plan["stages"][-1]["border_bytes"]) == 3
    doctor = chorale("doctor", "--json")
    assert doctor.returncode == 0
    assert last_json(doctor.stdout)["healthy"] is True
