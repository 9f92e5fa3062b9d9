"""Imports run one way, and what checks input needs no torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).parent.parent
ALLOWED = {"render": {"render"}, "infra": {"infra"}, "jobs": {"jobs", "render", "infra"}}
HEAVY = ("torch", "diffusers", "transformers", "pyvips", "boto3", "botocore")
LIGHT = (
    "jobs.cli.main",
    "render.spec",
    "render.plan.plan",
    "render.models.folder",
    "render.output.verify",
    "render.output.export",
    "render.builtin.studio",
    "infra.store.local",
    "jobs.node.tasks",
    "jobs.node.agent",
    "jobs.node.supervisor",
    "jobs.board.server",
    "jobs.kubernetes",
)


def imported_houses(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names.add(node.module or "")
    return {name.split(".")[0] for name in names} & {"render", "jobs", "infra", "tests", "bench"}


@pytest.mark.parametrize("house", ALLOWED)
def test_imports_run_one_way(house: str) -> None:
    files = list((TOP / house).rglob("*.py"))
    assert files
    for path in files:
        assert imported_houses(path) <= ALLOWED[house], path


@pytest.mark.parametrize("house", ["jobs", "infra"])
def test_diffusers_lives_in_the_engine_alone(house: str) -> None:
    for path in (TOP / house).rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "import diffusers" not in text and "from diffusers" not in text, path


@pytest.mark.parametrize("module", LIGHT)
def test_checking_input_needs_no_torch(module: str) -> None:
    program = f"import sys, {module}; print([m for m in {HEAVY} if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
