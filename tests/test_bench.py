"""The benchmarks are not run by tests; what they import exists."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[1] / "bench"


def test_every_module_of_the_bench_can_be_imported() -> None:
    modules = [
        ".".join(file.relative_to(BENCH.parent).with_suffix("").parts)
        for file in sorted(BENCH.rglob("*.py"))
        if file.stem not in ("__main__", "__init__")
    ]
    program = f"import importlib; [importlib.import_module(name) for name in {modules!r}]"
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=BENCH.parent, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr[-2000:]
