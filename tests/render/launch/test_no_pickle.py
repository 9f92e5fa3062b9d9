"""No process of a group loads a pickle: what a store or a peer sends is never code."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.cli import CHORALE, last_json

# Python imports it when it starts.
SITE = """
import os, pickle, sys, traceback

def _noted(function):
    def load(*arguments, **options):
        with open(os.environ["PICKLES"], "a") as file:
            file.write(f"{sys.argv} {''.join(traceback.format_stack()[:-1])}")
        raise RuntimeError("a pickle was loaded")
    return load

pickle.loads, pickle.load = _noted(pickle.loads), _noted(pickle.load)
with open(os.environ["STARTED"], "a") as file:
    file.write(" ".join(sys.orig_argv) + chr(10))
"""


@pytest.mark.timeout(300)
def test_no_process_of_a_group_loads_a_pickle(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(SITE)
    notes = {"PICKLES": str(tmp_path / "pickles"), "STARTED": str(tmp_path / "started")}
    words = ("render", "a red vase", "--size", "256x256", "--steps", "2", "--ranks", "2")
    finished = subprocess.run(
        [*CHORALE, *words, "--out", str(tmp_path / "image"), "--json"],
        capture_output=True,
        text=True,
        env=os.environ | notes | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"},
    )
    assert not (tmp_path / "pickles").exists(), (tmp_path / "pickles").read_text()
    assert finished.returncode == 0, finished.stderr
    assert last_json(finished.stdout)["ranks"] == 2
    started = (tmp_path / "started").read_text()
    assert "render.launch.launcher" in started and "render.launch.fork_server" in started
    assert started.count("-m render.launch.fork_client ") == 2
