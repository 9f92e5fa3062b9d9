"""One version of the project, driven by its command line alone.

Modules may be renamed between versions, so nothing is imported from them; the command's own module is read
from `pyproject.toml`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

_SITECUSTOMIZE = """\
import sys
editable = "__editable__"
sys.meta_path[:] = [each for each in sys.meta_path if editable not in getattr(each, "__module__", "")]
"""
"""Without it, a module that a tree lacks would come from the checkout that the environment has installed."""
_NOT_COPIED = ("out", "build", "dist")
_GRACE_S = 300.0


class CommandFailed(Exception):
    """A command of a tree has ended otherwise than it should."""


@dataclass(frozen=True, kw_only=True)
class Tree:
    """A copy of a checkout, which others may change meanwhile, and a folder for what belongs to it."""

    path: Path
    scratch: Path

    @classmethod
    def at(cls, checkout: Path, scratch: Path) -> Tree:
        """Copy it. Its processes see no other checkout, and an installed package of this one's version."""
        path, beside = scratch / "tree", scratch / "beside"
        shutil.copytree(checkout, path, ignore=partial(_ignored, checkout))
        project = _project(path)
        dist_info = beside / f"{project['name']}-{project['version']}.dist-info"
        dist_info.mkdir(parents=True)
        header = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
        (dist_info / "METADATA").write_text(header)
        (dist_info / "entry_points.txt").write_text(_entry_points(project))
        (beside / "sitecustomize.py").write_text(_SITECUSTOMIZE)
        return cls(path=path, scratch=scratch)

    @property
    def command(self) -> list[str]:
        module = _project(self.path)["scripts"]["chorale"].split(":")[0]
        return [sys.executable, "-m", module]

    def environment(self, **more: str) -> dict[str, str]:
        """No settings but ours, no farm but one in the scratch folder, and no network."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CHORALE_")}
        return (
            kept
            | {
                "PYTHONPATH": f"{self.scratch / 'beside'}{os.pathsep}{self.path}",
                "XDG_DATA_HOME": str(self.scratch / "home"),
                "CHORALE_METRICS_ADDRESS": "off",
                "HF_HUB_OFFLINE": "1",
            }
            | more
        )

    def run(self, *words: str, expect: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; raises `CommandFailed` unless it exits with `expect`."""
        finished = subprocess.run(
            [*self.command, *words],
            cwd=self.path,
            env=self.environment(**environment),
            capture_output=True,
            text=True,
        )
        if finished.returncode != expect:
            raise CommandFailed(
                f"{self.path}: {' '.join(words)}: exit code {finished.returncode}, not {expect}\n"
                f"{finished.stdout[-1000:]}{finished.stderr[-3000:]}"
            )
        return finished

    def call(self, *words: str, **environment: str) -> dict[str, Any]:
        """Run a command with --json; what the last line of its output says."""
        return last_json(self.run(*words, "--json", **environment).stdout)

    @contextmanager
    def running(self, *words: str, log: Path, **environment: str) -> Iterator[subprocess.Popen[str]]:
        """A command beside the block, its output in a file. SIGTERM at the block's end if it still runs."""
        with log.open("a") as file:
            process = subprocess.Popen(
                [*self.command, *words],
                cwd=self.path,
                env=self.environment(**environment),
                stdout=file,
                stderr=file,
                text=True,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            end(process)


def end(process: subprocess.Popen[str]) -> int:
    """Ask a process that `Tree.running` has started to end, and wait for it; its exit code."""
    if process.poll() is None:
        process.terminate()
    try:
        return process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.wait()


def _ignored(checkout: Path, folder: str, names: list[str]) -> set[str]:
    """What does not belong to a checkout: caches, environments and what was made by its commands."""
    ignored = {name for name in names if name == "__pycache__"}
    if Path(folder) == checkout:
        ignored |= {name for name in names if name.startswith(".") or name in _NOT_COPIED}
        ignored |= {name for name in names if name.endswith(".egg-info")}
    return ignored


def last_json(text: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(text.strip().splitlines()[-1])
    return document


def _entry_points(project: dict[str, Any]) -> str:
    """The entry points of a `[project]` table, as an installed package states them."""
    groups = project.get("entry-points", {})
    sections = (
        "\n".join([f"[{group}]", *(f"{n} = {v}" for n, v in names.items())])
        for group, names in groups.items()
    )
    return "\n".join(sections) + "\n"


def _project(path: Path) -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((path / "pyproject.toml").read_text())["project"]
    return project
