"""`--dtype auto` becomes a number format before anything is digested or stored."""

from __future__ import annotations

import json
from pathlib import Path

import diffusers
import pytest
import torch
from click.testing import CliRunner

from jobs.cli.main import cli
from jobs.db.submission import BatchItem, JobOptions, Preparation
from render.models.model_paths import ModelPaths
from render.models.number_format import resolve_dtype
from render.spec import Spec
from tests.render.models.tiny_folders import save_sdxl


@pytest.fixture(scope="module")
def folders(model_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    half = save_sdxl(tmp_path_factory.mktemp("half") / "sdxl")
    unet = diffusers.UNet2DConditionModel.from_pretrained(half, subfolder="unet", dtype=torch.float16)
    unet.save_pretrained(half / "unet")
    return {"float32": model_folders["sdxl"], "float16": half}


@pytest.mark.parametrize(
    ("bfloat16", "stored", "expected"),
    [
        (None, "float32", "float32"),
        (None, "float16", "float32"),
        (True, "float32", "bfloat16"),
        (True, "float16", "float16"),
        (False, "float32", "float16"),
        (False, "float16", "float16"),
    ],
)
def test_it_follows_from_the_device_and_the_files(
    folders: dict[str, Path], bfloat16: bool | None, stored: str, expected: str
) -> None:
    paths = ModelPaths(model=folders[stored])
    assert resolve_dtype(Spec(prompt="x", dtype="auto"), paths, bfloat16).dtype == expected
    assert resolve_dtype(Spec(prompt="x", dtype="bfloat16"), paths, bfloat16).dtype == "bfloat16"


def test_auto_itself_has_no_digest() -> None:
    with pytest.raises(ValueError, match="no number format"):
        Spec(prompt="x", dtype="auto").digest("m")


def test_a_render_on_the_cpu_has_the_digest_of_float32() -> None:
    def digest(dtype: str) -> str:
        arguments = ["render", "x", "--dtype", dtype, "--device", "cpu", "--dry-run", "--json"]
        done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return str(json.loads(done.stdout.splitlines()[-1])["digest"])

    assert digest("auto") == digest("float32") != digest("bfloat16")


@pytest.mark.parametrize(("bfloat16", "expected"), [(None, "float32"), (True, "float16")])
def test_a_job_records_what_auto_became(bfloat16: bool | None, expected: str) -> None:
    """The built-in model's files are in float16."""
    with Preparation(JobOptions(owner="me"), bfloat16) as prepared:
        prepared.add(BatchItem(row=1, custom_id="a", spec=Spec(prompt="x", dtype="auto")))
        (chunk,) = prepared.chunks()
    assert chunk[0]["job"]["spec"]["dtype"] == expected
