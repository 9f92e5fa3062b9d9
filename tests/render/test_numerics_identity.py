"""The identity of numerics changes with everything that affects bits, and with nothing else."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from render import numerics
from render.numerics import Numerics, cpu_kind, numerics_identity, numerics_of

ONE = Numerics(
    numerics=1, device="cpu x86_64 GenuineIntel avx2", packages={"torch": "2.13.0", "pillow": "12.0"}
)


def test_it_is_stable() -> None:
    assert ONE.identity == "815958f56304"


@pytest.mark.parametrize(
    "other",
    [
        replace(ONE, numerics=2),
        replace(ONE, device="NVIDIA H200"),
        replace(ONE, device="cpu x86_64 GenuineIntel avx512f"),
        replace(ONE, packages={"torch": "2.13.1", "pillow": "12.0"}),
        replace(ONE, packages={"torch": "2.13.0"}),
    ],
)
def test_other_numerics_have_another_identity(other: Numerics) -> None:
    assert other.identity != ONE.identity


def test_the_order_of_packages_does_not_matter() -> None:
    assert replace(ONE, packages=dict(reversed(ONE.packages.items()))).identity == ONE.identity


def test_this_installation_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    found = numerics_of(cpu_kind())
    assert found.device.startswith("cpu ") and "unknown" not in found.packages.values()
    assert numerics_identity(cpu_kind()) == found.identity and len(found.identity) == 12
    monkeypatch.setattr(numerics, "NUMERICS", numerics.NUMERICS + 1)
    assert numerics_identity(cpu_kind()) != found.identity


def test_it_is_found_without_torch() -> None:
    program = "import sys, jobs.numerics; jobs.numerics.local_numerics(); print('torch' in sys.modules)"
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "False"
