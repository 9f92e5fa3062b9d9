"""docs/PRODUCT.md works as it is written."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from jobs.cli.main import cli
from render.output.manifest import parse_manifest
from tests.support.products import save_product

DOCUMENT = (Path(__file__).parents[2] / "docs" / "PRODUCT.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```\n(.*?)```", DOCUMENT, re.DOTALL)
RENDERS = [block.strip() for block in BLOCKS if block.startswith("chorale render")]


def test_the_options_that_it_names_exist() -> None:
    commands = [cli.commands[name] for name in ("render", "submit", "export", "upscale")]
    known = {option for command in commands for each in command.params for option in each.opts}
    named = set(re.findall(r"`(--[a-z-]+)", DOCUMENT))
    assert len(named) >= 8 and named <= known


@pytest.fixture
def photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    save_product(tmp_path, 512, 512)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_its_batch_is_sound(photographs: Path) -> None:
    (photographs / "rows.csv").write_text(next(block for block in BLOCKS if block.startswith("sku,")))
    line = next(block for block in BLOCKS if block.startswith("chorale submit"))
    result = CliRunner().invoke(cli, shlex.split(line)[1:])
    assert result.exit_code == 0, result.output
    assert "OK: 2 images would be queued" in result.stdout


@pytest.mark.parametrize("line", RENDERS)
def test_its_commands_are_planned(line: str, photographs: Path) -> None:
    arguments = [*shlex.split(line)[1:], "--dry-run", "--json"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("line", RENDERS)
def test_its_commands_keep_the_product(line: str, photographs: Path) -> None:
    arguments = [*shlex.split(line)[1:], "--ranks", "2", "--steps", "8"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    out = photographs / arguments[arguments.index("--out") + 1]
    manifest = parse_manifest((out / "manifest.json").read_bytes(), str(out))
    assert manifest.kept is not None and manifest.kept.own_scale and manifest.kept.pixels > 10_000
    if "--fit" not in arguments:
        assert CliRunner().invoke(cli, ["export", str(out), "found.png"]).exit_code == 0
        found, cut = (np.asarray(Image.open(photographs / name)) for name in ("found.png", "cut.png"))
        full = cut[..., 3] == 255
        assert np.array_equal(found[full][:, :3], cut[full][:, :3]) and full.sum() == manifest.kept.pixels
