"""Imports run one way, without circles, and what checks input does not import torch."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.import_graph import Graph, as_text, circles, file_graph, folder_graph, folder_of

TOP = Path(__file__).parent.parent
ALLOWED = {"render": {"render"}, "infra": {"infra"}, "jobs": {"jobs", "render", "infra"}}
LAYERS = {
    "render": (
        "errors",
        "spec",
        "plan",
        "sampling",
        "models",
        "guidance",
        "denoise",
        "output",
        "engine",
        "launch",
        "pipeline",
    ),
    "jobs": ("errors", "db", "scheduler", "node", "cli"),
}
"""From the bottom up: none of them imports one to the right of it. What is not listed finds its own place."""
HEAVY = ("torch", "diffusers", "transformers", "pyvips", "boto3", "botocore")
LIGHT = (
    "infra.store.local",
    "jobs.board.server",
    "jobs.cli.main",
    "jobs.db.submission",
    "jobs.kubernetes",
    "jobs.node.agent",
    "jobs.node.supervisor",
    "jobs.node.tasks",
    "jobs.report_delivery",
    "jobs.scheduler.dispatcher",
    "render.builtin.studio",
    "render.models.folder",
    "render.output.export",
    "render.output.verify",
    "render.plan.plan",
    "render.spec",
)


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_run_one_way(package: str) -> None:
    modules = {name: imported for name, imported in file_graph().items() if name.split(".")[0] == package}
    assert modules
    for name, imported in modules.items():
        assert {each.split(".")[0] for each in imported} <= ALLOWED[package], name


@pytest.mark.parametrize("graph", [file_graph, folder_graph])
def test_there_are_no_circles(graph: Callable[[], Graph]) -> None:
    """Between files, and between folders; `pytest -s` prints the folders."""
    if graph is folder_graph:
        print("\n" + as_text(folder_graph()))
    assert [" -> ".join(circle) for circle in circles(graph())] == []


@pytest.mark.parametrize("package", LAYERS)
def test_layers_import_only_those_below(package: str) -> None:
    height = {folder_of(f"{package}.{name}"): number for number, name in enumerate(LAYERS[package])}
    graph = folder_graph()
    assert height.keys() <= graph.keys()
    upward = [
        f"{lower} -> {upper}"
        for lower in height
        for upper in graph[lower] & height.keys()
        if height[upper] > height[lower]
    ]
    assert upward == []


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c", "b"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


@pytest.mark.parametrize("package", ["jobs", "infra"])
def test_only_the_engine_imports_diffusers(package: str) -> None:
    for path in (TOP / package).rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "import diffusers" not in text and "from diffusers" not in text, path


@pytest.mark.parametrize("module", LIGHT)
def test_checking_input_needs_no_torch(module: str) -> None:
    program = f"import sys, {module}; print([m for m in {HEAVY} if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
