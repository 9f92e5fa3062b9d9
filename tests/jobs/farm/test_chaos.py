"""A short run of chaos; `make chaos` is the long one."""

from pathlib import Path

import pytest

from tests.support.chaos import run_chaos


@pytest.mark.timeout(600)
def test_a_few_faults_lose_nothing(tmp_path: Path) -> None:
    outcome = run_chaos(tmp_path, seed=3, jobs=4, faults=5, log=print)
    assert outcome.holds, outcome
    assert sum(outcome.faults.values()) > 2
