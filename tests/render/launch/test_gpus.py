"""The GPUs of a driver, through NVIDIA's own Python binding.

No GPU is needed: a library of ours stands in for the driver's. So this tests our use of the binding, units
and slots, and nothing of a real driver.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pynvml
import pytest

from render.launch.gpus import driver_version, read_gpus, visible_gpus
from tests.support.services import require

_LIBRARY = Path(__file__).parents[2] / "support" / "driver.c"
_PROGRAM = """
import json
from render.launch import gpus
visible = [gpu.selector for gpu in gpus.visible_gpus()]
print(json.dumps([gpus.driver_version(), visible, gpus.smallest_memory_bytes(), list(gpus.read_gpus())]))
"""
GIB = 2.0**30


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a libnvidia-ml.so.1 of four devices; the last one has fallen off the bus."""
    compiler = shutil.which("cc")
    require(compiler, "A C compiler", "gcc")
    folder = tmp_path_factory.mktemp("driver")
    library = folder / "libnvidia-ml.so.1"
    subprocess.run([str(compiler), "-shared", "-fPIC", "-o", library, _LIBRARY], check=True, timeout=60)
    return folder


def asked(driver: Path, visible: str | None) -> list[Any]:
    """What a process of its own reports under a `CUDA_VISIBLE_DEVICES`."""
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    environment |= {"LD_LIBRARY_PATH": str(driver)} | (
        {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    )
    completed = subprocess.run(
        [sys.executable, "-c", _PROGRAM], env=environment, capture_output=True, text=True, timeout=120
    )
    assert completed.returncode == 0, completed.stderr
    answer: list[Any] = json.loads(completed.stdout)
    return answer


def test_all_devices_by_slot_in_base_units(driver: Path) -> None:
    version, visible, _, readings = asked(driver, None)
    assert version == "580.65.06" and visible == ["0", "1", "2", "3"]
    used = [["chorale_vram_used_bytes", slot, (slot + 1) * GIB] for slot in range(3)]
    total = [["chorale_vram_total_bytes", slot, 80 * GIB] for slot in range(3)]
    busy = [["chorale_gpu_utilization_ratio", slot, 0.25 * (slot + 1)] for slot in range(2)]
    assert sorted(readings) == sorted(used + total + busy), "a device that reports nothing is left out"


@pytest.mark.parametrize(
    ("visible", "selectors", "first_used_gib"),
    [
        ("2,0", ["2", "0"], 3),
        ("GPU-bbbb", ["GPU-bbbb"], 2),
        (" 1 , 7, 0", ["1"], 2),
        ("GPU-none,0", [], None),
        ("", [], None),
        ("-1", [], None),
    ],
)
def test_visible_devices_are_heeded(
    driver: Path, visible: str, selectors: list[str], first_used_gib: int | None
) -> None:
    _, found, smallest, readings = asked(driver, visible)
    assert found == selectors
    assert smallest == (80 * GIB if selectors else None)
    used = [value for name, slot, value in readings if name == "chorale_vram_used_bytes" and slot == 0]
    assert used == ([] if first_used_gib is None else [first_used_gib * GIB])


def test_without_a_driver_there_are_no_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> None:
        raise pynvml.NVMLError_LibraryNotFound

    monkeypatch.setattr(pynvml, "nvmlInit", absent)
    assert visible_gpus() == () and list(read_gpus()) == [] and driver_version() is None
