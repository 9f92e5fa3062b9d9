"""Agents of a farm as real processes."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
from pathlib import Path
from typing import Any
from uuid import uuid4

from click.testing import CliRunner

from jobs.cli.main import cli
from render.denoise.checkpoint import KEY as CHECKPOINT
from tests.support.cli import CHORALE, last_json, processes_with, start, wait_until


class Machines:
    """Agents of one farm, each a process of its own."""

    def __init__(self, home: Path, url: str, **environment: str) -> None:
        self.mark = f"CHORALE_TEST_{uuid4().hex}"
        self.environment = {"CHORALE_DATABASE_URL": url, "XDG_DATA_HOME": str(home), self.mark: "1"}
        self.environment |= environment
        self.agents: dict[str, subprocess.Popen[str]] = {}

    def boot(
        self,
        name: str,
        slots: int = 1,
        address: str | None = None,
        prefix: tuple[str, ...] = (),
        wait: bool = True,
    ) -> None:
        """Start an agent, on another host where a prefix says so, and wait until the farm knows it.

        Its processes carry a mark of the node beside the farm's.
        """
        address = address or f"127.0.0.{len(self.agents) + 2}"
        words = ("agent", "--name", name, "--slots", str(slots), "--address", address)
        own = {f"{self.mark}_{name}": "1"}
        with (Path(self.environment["XDG_DATA_HOME"]) / f"{name}.log").open("a") as log:
            self.agents[name] = start(*words, prefix=prefix, log=log, **self.environment, **own)
        if not wait:
            return
        wait_until(lambda: any(node["name"] == name and node["up"] for node in self.call("nodes")["nodes"]))

    def begin(self, *words: str) -> subprocess.Popen[bytes]:
        """Start a command and do not wait for its end."""
        return subprocess.Popen(
            [*CHORALE, *words], env=os.environ | self.environment, stdout=subprocess.DEVNULL
        )

    def call(self, *words: str) -> dict[str, Any]:
        """Run a command of the farm in this process: tests ask too often to start one each time."""
        handlers = logging.root.handlers[:]
        result = CliRunner().invoke(cli, [*words, "--json"], env=self.environment, catch_exceptions=False)
        # The command's own writes to a stream that is closed now.
        logging.root.handlers[:] = handlers
        assert result.exit_code == 0, result.output
        return last_json(result.stdout)

    @property
    def home(self) -> Path:
        return Path(self.environment["XDG_DATA_HOME"])

    def logs(self) -> Path:
        return Path(self.environment["XDG_DATA_HOME"]) / "chorale" / "logs"

    def checkpoint(self) -> Path | None:
        """A checkpoint of an unfinished image in the farm's own store."""
        return next((Path(self.environment["XDG_DATA_HOME"]) / "chorale").rglob(CHECKPOINT), None)

    def count(self, state: str) -> int:
        return len(self.call("list", "--state", state)["jobs"])

    def job(self) -> dict[str, Any]:
        return self.call("show", self.call("list")["jobs"][0]["id"])

    def wait(self, state: str, seconds: float = 120) -> dict[str, Any]:
        wait_until(lambda: self.job()["state"] == state, seconds)
        return self.job()

    def kill(self, command: str) -> None:
        """SIGKILL to a process of this farm whose command line holds `command`."""
        pids = [pid for pid, line in processes_with(self.mark).items() if command in line]
        os.kill(pids[0], signal.SIGKILL)

    def shut_down(self) -> None:
        for agent in self.agents.values():
            if agent.poll() is None:
                agent.terminate()
        for agent in self.agents.values():
            agent.communicate(timeout=60)
        wait_until(lambda: not processes_with(self.mark), 20)
