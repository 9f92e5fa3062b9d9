"""Promise 1 for transformer families: the pixels depend on the spec alone, on any number of ranks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.render.models.tiny_transformers import BUILDERS, save

FEW = ("flux",)
"""What `make test` renders; `make test-all` renders all."""
ALIKE = ("flux-kontext", "hunyuan-image-unguided")
"""Families that render as another one does, without a reference picture and with a guidance that is given."""


def roots_of(ranks: int, folders: list[Path]) -> dict[str, str]:
    launcher = [sys.executable, "-m", "render.launch.torchrun", str(ranks)]
    finished = subprocess.run(
        [*launcher, "-m", "tests.render.models.transformer_ranks", *map(str, folders)],
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert finished.returncode == 0, finished.stderr[-4000:]
    roots: dict[str, str] = json.loads(finished.stdout.strip().splitlines()[-1])
    return roots


def check(names: list[str], counts: tuple[int, ...], root: Path) -> None:
    folders = [save(name, root / name) for name in names]
    reference = roots_of(1, folders)
    different = [root for case, root in reference.items() if case.split()[0] not in ALIKE]
    assert len(set(different)) == len(different) > 0, "every case renders a different image"
    for ranks in counts:
        assert roots_of(ranks, folders) == reference


@pytest.mark.timeout(1800)
def test_two_ranks_give_the_root_of_one(tmp_path: Path) -> None:
    check(list(FEW), (2,), tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_any_number_of_ranks_gives_the_root_of_one_for_every_family(tmp_path: Path) -> None:
    check(list(BUILDERS), (2, 3), tmp_path)
