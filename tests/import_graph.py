"""The import graph of the packages, by files and by folders: `python -m tests.import_graph [--files]`.

Every import counts: those at the top of a module, in functions and under TYPE_CHECKING. A module that lies
directly in a package's top folder (`render/engine.py`) stands for itself in the graph of folders.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

TOP = Path(__file__).parent.parent
PACKAGES = ("infra", "render", "jobs")
Graph = dict[str, set[str]]


@cache
def file_graph() -> Graph:
    """Module -> the modules of ours that it imports. `render.spec` is the file `render/spec/__init__.py`."""
    paths = {path for package in PACKAGES for path in (TOP / package).rglob("*.py")}
    modules = {_module_name(path): path for path in paths}
    return {name: _imports(path, modules) - {name} for name, path in sorted(modules.items())}


def folder_graph() -> Graph:
    """Folder -> the folders of ours that its files import."""
    graph: Graph = {}
    for name, imported in file_graph().items():
        folder = folder_of(name)
        graph.setdefault(folder, set()).update({folder_of(each) for each in imported} - {folder})
    return graph


@cache
def folder_of(module: str) -> str:
    """`jobs.db.migrations.env` -> `jobs/db`; `jobs.farm` -> `jobs/farm.py`."""
    parts = module.split(".")
    if len(parts) == 1:
        return f"{module}/__init__.py"
    return "/".join(parts[:2]) if (TOP / parts[0] / parts[1]).is_dir() else f"{parts[0]}/{parts[1]}.py"


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """One shortest circle through each node that is on one, each circle once."""
    found: dict[frozenset[str], list[str]] = {}
    for start in sorted(graph):
        before: dict[str, str] = {}
        queue = [start]
        while queue and start not in before:
            node = queue.pop(0)
            for each in sorted(graph.get(node, ())):
                if each not in before:
                    before[each] = node
                    queue.append(each)
        if start in before:
            path = [start]
            while path[0] != start or len(path) == 1:
                path.insert(0, before[path[0]])
            found.setdefault(frozenset(path), path)
    return list(found.values())


def as_text(graph: Graph) -> str:
    """The graph as lines `folder -> folders`, those that import nothing first."""
    lines, shown = [], set[str]()
    while len(shown) < len(graph):
        # A circle has no first node; whatever comes next in the alphabet breaks it.
        free = [name for name in sorted(graph) if name not in shown and graph[name] <= shown]
        for name in free or [min(graph.keys() - shown)]:
            lines.append(f"{name} -> {', '.join(sorted(graph[name])) or '(nothing)'}")
            shown.add(name)
    return "\n".join(lines)


def _module_name(path: Path) -> str:
    parts = path.relative_to(TOP).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(path: Path, modules: Mapping[str, Path]) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            module = node.module or ""
            # A name may be a module of the package, or something that the package's own file defines.
            inside = {f"{module}.{alias.name}" for alias in node.names}
            names |= {each if each in modules else module for each in inside}
    return names & modules.keys()


if __name__ == "__main__":
    print(as_text(file_graph() if "--files" in sys.argv else folder_graph()))
    for name, graph in (("files", file_graph()), ("folders", folder_graph())):
        print(f"\ncircles between {name}: {len(circles(graph))}")
        for circle in circles(graph):
            print("  " + " -> ".join(circle))
