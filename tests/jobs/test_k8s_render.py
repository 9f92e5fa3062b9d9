"""`chorale k8s render`: YAML and nothing else, or one sentence and exit code 2."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from jobs.cli import k8s
from jobs.cli.main import main
from render.models.folder import resolve_model
from render.models.packaged import BUILTIN

VASE = str(Path(__file__).parent.parent.parent / "examples" / "vase.yaml")


def k8s_render(capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(["k8s", "render", *flags])
    captured = capsys.readouterr()
    assert isinstance(end.value.code, int)
    return end.value.code, captured.out, captured.err


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (["--ranks", "1024"], "ranks: 1024"),
        (["--ranks", "6", "--gpus-per-pod", "4"], "ranks: 6 is not a multiple of the 4"),
        (["--ranks", "0"], "ranks: '0'"),
        ([], "ranks: missing"),
        (["--ranks", "8", "--gpus-per-pod", "many"], "gpus-per-pod: 'many'"),
        (["--ranks", "8", "--queue", "Night Shift"], "queue: 'Night Shift'"),
        (["--ranks", "8", "--queue", "night/urgent"], "queue: 'night/urgent'"),
        (["--ranks", "8", "--least-ranks", "4"], "least-ranks: '4'"),
        (["--ranks", "8", "--queue", "night", "--least-ranks", "16"], "least-ranks: 16"),
        (["--ranks", "8", "--out", "/images"], "out: '/images'"),
        (["--ranks", "8", "--claim", "images", "--out", "s3://b/p"], "out: 's3://b/p'"),
        (["--ranks", "8", "--cpus-per-pod", "1", "--gpus-per-pod", "1"], "cpus-per-pod: '1'"),
        (
            ["--ranks", "8", "--model-image", "registry.example/sdxl:1"],
            "model-image: 'registry.example/sdxl:1'",
        ),
        (
            ["--ranks", "8", "--model-image", f"r/m@sha256:{64 * 'a'}", "--models-claim", "models"],
            "cannot be used with --models-claim",
        ),
        (["--ranks", "8", "--queue", "night", "--gang"], "gang: 'true' cannot be used with --queue"),
        (["--ranks", "8", "--topology", "rack"], "topology: 'rack' needs --queue, --jobset or --gang"),
        (["--ranks", "8", "--gang", "--topology", "a rack"], "topology: 'a rack' is not a label"),
        (["--ranks", "8", "--cpus-per-pod", "1", "--device-class", "gpu.nvidia.com"], "device-class:"),
        (["--ranks", "8", "--device-class", "GPU"], "device-class: 'GPU'"),
    ],
)
def test_what_cannot_be_is_refused(capsys: pytest.CaptureFixture[str], flags: list[str], names: str) -> None:
    code, output, errors = k8s_render(capsys, VASE, *flags)
    assert code == 2 and output == ""
    assert names in errors and errors.count("\n") == 1


def test_a_picture_to_start_from_is_for_a_farm(capsys: pytest.CaptureFixture[str]) -> None:
    code, output, errors = k8s_render(capsys, VASE.replace("vase.yaml", "restyle.yaml"), "--ranks", "1")
    assert code == 2 and output == "" and "submit this image to a farm" in errors


def _spec(folder: Path, **values: Any) -> str:
    file = folder / "spec.yaml"
    file.write_text(yaml.safe_dump({"prompt": "a red vase"} | values))
    return str(file)


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    file = tmp_path / "brand.safetensors"
    layer = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    shapes = {f"{layer}.lora_A.weight": (2, 4), f"{layer}.lora_B.weight": (4, 2)}
    save_file({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, file)
    return file


def test_files_beside_the_model_have_to_be_in_the_pods(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, lora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = _spec(tmp_path, lora=[str(lora)])
    code, output, errors = k8s_render(capsys, spec, "--ranks", "1")
    assert code == 2 and output == ""
    assert "lora: '" in errors and "is on this machine and not in the pods" in errors
    assert errors.count("\n") == 1
    monkeypatch.setattr(k8s, "MODELS_MOUNT", str(tmp_path))
    code, output, errors = k8s_render(capsys, spec, "--ranks", "1")
    assert code == 2 and "lora: " in errors and "is not mounted in the pods; add --models-claim" in errors
    code, output, _ = k8s_render(capsys, spec, "--ranks", "1", "--models-claim", "models")
    assert code == 0 and str(lora) in output


def test_the_package_s_own_enlarger_is_in_the_pods(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, output, errors = k8s_render(capsys, _spec(tmp_path, enlarger="builtin"), "--ranks", "1")
    assert code == 0, errors
    # By its name: it lies elsewhere there.
    spec = json.loads(next(yaml.safe_load_all(output))["data"]["spec.json"])
    assert spec["enlarger"] == "builtin"


@pytest.mark.parametrize("field", ["model", "vae"])
def test_so_have_folders(capsys: pytest.CaptureFixture[str], tmp_path: Path, field: str) -> None:
    folder = str(resolve_model(BUILTIN))
    spec = _spec(tmp_path, **{field: folder})
    code, output, errors = k8s_render(capsys, spec, "--ranks", "1")
    assert code == 2 and output == "" and f"{field}: " in errors and "not in the pods" in errors
    if field == "model":
        assert k8s_render(capsys, spec, "--ranks", "1", "--model", "/models/one")[0] == 0


def test_a_spec_that_cannot_be_read_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, output, errors = k8s_render(capsys, str(tmp_path / "none.yaml"), "--ranks", "1")
    assert code == 2 and output == "" and "cannot be read" in errors


def test_a_prompt_is_no_place_for_variables(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Kubernetes would replace $(HOME) in an argument; in the file it stays a part of the picture."""
    (tmp_path / "spec.yaml").write_text("prompt: 'a sign that says $(HOME): €5'\nmodel: builtin\n")
    code, output, _ = k8s_render(
        capsys, str(tmp_path / "spec.yaml"), "--ranks", "2", "--model", "/models/one"
    )
    assert code == 0
    objects = {document["kind"]: document for document in yaml.safe_load_all(output)}
    spec = yaml.safe_load(objects["ConfigMap"]["data"]["spec.json"])
    assert spec["prompt"] == "a sign that says $(HOME): €5" and spec["model"] == "/models/one"
    assert "HOME" not in str(objects["Job"])
