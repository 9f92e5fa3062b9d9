"""The end of a prompt that a model does not read is told before queueing, and stands in the manifest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from jobs.cli.main import cli
from jobs.db.submission import JobOptions, Preparation
from jobs.intake.batch import check_single
from jobs.intake.options import IntakeOptions
from render.distributed import SingleRankGroup
from render.engine import render_image
from render.models import load_adapter, read_model_info
from render.spec import Spec
from tests.render.models.tiny_transformers import save
from tests.support.sinks import MemorySink

LONG = "a red vase on a table " * 40


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("flux", tmp_path_factory.mktemp("flux"))


def test_before_a_render(model: Path, tmp_path: Path) -> None:
    words = ["render", LONG, "--model", str(model), "--out", str(tmp_path / "out"), "--dry-run", "--json"]
    found = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert found.exit_code == 0
    (note,) = json.loads(found.stdout.splitlines()[-1])["notes"]
    assert "of which the model reads 511; shorten it" in note and note in found.stderr


def test_before_a_job_is_queued(model: Path) -> None:
    with Preparation(JobOptions(owner="test")) as prepared:
        checked = check_single({"prompt": LONG, "model": str(model)}, IntakeOptions(), prepared)
        assert checked.long_prompts == 1
        assert len(checked.notes) == 1 and "of which the model reads 511; shorten it" in checked.notes[0]
    with Preparation(JobOptions(owner="test")) as prepared:
        short = check_single({"prompt": "a red vase", "model": str(model)}, IntakeOptions(), prepared)
        assert not short.notes and not short.long_prompts
    with Preparation(JobOptions(owner="test")) as prepared:
        weighted = check_single(
            {"prompt": "a ({red|blue}:1.3) vase", "model": str(model)}, IntakeOptions(), prepared
        )
        assert weighted.notes == ["prompt: flux reads weights such as (glaze:1.3) as letters; leave them out"]


def test_in_the_manifest(model: Path) -> None:
    torch.set_num_threads(1)
    info = read_model_info(model)
    adapter = load_adapter(model, torch.device("cpu"), "float32", info)
    spec = Spec(prompt=LONG, width=64, height=64, steps=1, model=str(model))
    report = render_image(spec, adapter, SingleRankGroup(), MemorySink(), device=torch.device("cpu"))
    assert set(report.manifest.dropped) == {"prompt"}
    assert LONG.strip().endswith(report.manifest.dropped["prompt"].strip())
