"""What a driver says of its GPUs, through NVIDIA's own Python binding.

No GPU is needed: a library of ours stands in for the driver's. So this holds our use of the binding, units
and slots, and says nothing of a real driver.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.services import require

_LIBRARY = Path(__file__).parent.parent / "support" / "driver.c"
_LOOK = """
import json, infra.gpus, prometheus_client
from infra.metrics_exporter import MetricsExporter
exporter = MetricsExporter("n1", "cuda")
shown = prometheus_client.generate_latest(exporter.registry).decode().splitlines()
lines = dict(line.rsplit(" ", 1) for line in shown if line.startswith(("chorale_vram", "chorale_gpu")))
print(json.dumps([infra.gpus.driver_version(), {name: float(value) for name, value in lines.items()}]))
"""


def test_each_device_is_told_by_its_slot_in_base_units(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    require(compiler, "A C compiler", "gcc")
    library = tmp_path / "libnvidia-ml.so.1"
    subprocess.run([str(compiler), "-shared", "-fPIC", "-o", library, _LIBRARY], check=True, timeout=60)
    completed = subprocess.run(
        [sys.executable, "-c", _LOOK],
        env=os.environ | {"LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert completed.returncode == 0, completed.stderr
    driver, shown = json.loads(completed.stdout)
    assert driver == "580.65.06"
    gib = 2.0**30
    used = {f'chorale_vram_used_bytes{{node="n1",slot="{slot}"}}': (slot + 1) * gib for slot in range(3)}
    total = {f'chorale_vram_total_bytes{{node="n1",slot="{slot}"}}': 80 * gib for slot in range(3)}
    busy = {
        f'chorale_gpu_utilization_ratio{{node="n1",slot="{slot}"}}': 0.25 * (slot + 1) for slot in range(2)
    }
    assert shown == used | total | busy, "a device that tells nothing is left out"
