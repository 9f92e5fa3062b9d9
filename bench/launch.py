"""Runs a case of `bench.worker` on some ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from render.launch.rank_environment import RANK_ENVIRONMENT


def run_case(case: dict[str, Any], ranks: int = 1, prefix: tuple[str, ...] = ()) -> dict[str, Any]:
    """One measurement by real processes with one thread each; the worker's JSON. A prefix puts it on
    another host."""
    launcher = [*prefix, sys.executable]
    if ranks > 1:
        launcher += ["-m", "render.launch.torchrun", str(ranks)]
    finished = subprocess.run(
        [*launcher, "-m", "bench.worker", json.dumps(case)],
        capture_output=True,
        text=True,
        env=os.environ | RANK_ENVIRONMENT,
    )
    if finished.returncode:
        raise RuntimeError(finished.stderr[-3000:])
    result: dict[str, Any] = json.loads(finished.stdout.strip().splitlines()[-1])
    return result
