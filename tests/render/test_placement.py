"""Promise 1: the pixels depend on the spec alone. One rank is the reference."""

import json
import subprocess
import sys
from functools import cache

import pytest

from tests.render.placement_ranks import cases


@cache
def roots_of(ranks: int) -> dict[str, str]:
    """Roots of all cases, rendered by one group of `ranks` real processes over gloo."""
    launcher = [sys.executable, "-m", "render.launch.torchrun", str(ranks)]
    finished = subprocess.run(
        [*launcher, "-m", "tests.render.placement_ranks"], capture_output=True, text=True, timeout=900
    )
    assert finished.returncode == 0, finished.stderr[-4000:]
    roots: dict[str, str] = json.loads(finished.stdout.strip().splitlines()[-1])
    return roots


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "ranks", [pytest.param(2, marks=pytest.mark.slow), 3, pytest.param(4, marks=pytest.mark.slow)]
)
def test_any_number_of_ranks_gives_the_root_of_one(ranks: int) -> None:
    reference = roots_of(1)
    assert len(set(reference.values())) == len(cases()), "every case renders a different image"
    different = {name for name, root in roots_of(ranks).items() if root != reference[name]}
    assert not different
