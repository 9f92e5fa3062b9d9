"""How long until ranks work: a group's cold start, and what the death of a node costs its job."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from sqlalchemy import select

from bench.table import Row
from infra.database import Database
from jobs.db.tables import members
from render.events import Event, ModelLoaded
from render.launch.rank_environment import RANK_ENVIRONMENT
from render.launch.rank_group import RankGroup
from render.launch.request import Request
from render.models.folder import read_model_info, resolve_model
from render.models.model_paths import ModelPaths
from render.spec import Spec
from tests.support.cli import processes_with, wait_until
from tests.support.machines import Machines

TIMES = 5
_BARE = """
import torch
from render.models import load_adapter, read_model_info, resolve_model
folder = resolve_model("builtin")
load_adapter(folder, torch.device("cpu"), "float32", read_model_info(folder))
"""
_LONG = ("a red vase", "--size", "256x256", "--steps", "200", "--strength", "1", "--seed", "5")


def rows() -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="starts-") as name:
        return [*_cold_start(Path(name)), *_death(Path(name))]


def _cold_start(folder: Path) -> Iterator[Row]:
    """Side by side, several times, since a machine is not equally fast at all times."""
    bare, group, supervisor = [], [], []
    for number in range(TIMES):
        bare.append(_seconds(_BARE))
        group.append(_until_loaded(folder / str(number)))
        supervisor.append(_seconds("import jobs.node.supervisor"))
    yield Row("a bare process imports torch and loads the model: seconds", median(bare), "")
    yield Row("a group's start until its model is loaded: seconds", median(group), "")
    ratio = median(ours / theirs for ours, theirs in zip(group, bare, strict=True))
    yield Row("cold start of a group over the bare process", ratio, "<= 1.3")
    yield Row("before it, its supervisor's own start: seconds", median(supervisor), "")


def _seconds(code: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | RANK_ENVIRONMENT)
    return time.perf_counter() - started


def _until_loaded(out: Path) -> float:
    """From the start of a group of one rank to the event that its model is loaded."""
    folder = resolve_model("builtin")
    info = read_model_info(folder)
    spec = Spec(prompt="a red vase", width=128, height=128, steps=1)
    folders = ModelPaths(model=folder)
    request = Request(spec=spec.to_dict(), folders=folders, info=info, device="cpu", out=str(out))
    loaded: list[float] = []

    def on_event(event: Event) -> None:
        if isinstance(event, ModelLoaded):
            loaded.append(time.perf_counter())

    started = time.perf_counter()
    group = RankGroup(1)
    try:
        group.render(request, on_event)
    finally:
        group.close()
    return loaded[0] - started


def _death(folder: Path) -> Iterator[Row]:
    """All processes of a node are killed at once while another one is idle; settings are the defaults."""
    found = [_parts_of_a_death(folder / f"death-{number}") for number in range(3)]
    whole = sorted(found, key=lambda parts: sum(parts.values()))[1]
    yield Row("from a node's death to its job's first new step: seconds", sum(whole.values()), "<= 15")
    yield Row("... the slowest of three", max(sum(parts.values()) for parts in found), "")
    for name, seconds in whole.items():
        yield Row(f"... {name}", seconds, "")


def _parts_of_a_death(home: Path) -> dict[str, float]:
    """The parts in seconds, in their order. All clocks are this machine's."""
    home.mkdir()
    url = f"sqlite:///{home / 'farm.db'}"
    machines = Machines(home, url)
    database = Database(url)
    try:
        machines.boot("n1")
        machines.call("submit", *_LONG, "--ranks", "1")
        _when_said(machines, 1, "step 4 of")
        machines.boot("n2")
        # So that it sweeps: an agent lets others' leases be for a while after its own start.
        time.sleep(10)
        for pid in processes_with(f"{machines.mark}_n1"):
            os.kill(pid, signal.SIGKILL)
        died = time.time()
        with database.read() as connection:
            lease = connection.execute(select(members.c.lease_until)).scalar_one()
        loaded = _when_said(machines, 2, "model loaded")
        first = _when_said(machines, 2, " step ")
        told = {event["new"]: event["time"] for event in machines.job()["events"]}
        machines.call("cancel", machines.job()["id"])
    finally:
        machines.shut_down()
        database.close()
    marks = {
        "until its lease is over": lease,
        "until the sweep has placed the job again": told["placing"],
        "until a supervisor stands by": told["rendering"],
        "until its group has loaded the model": loaded,
        "until the first step is done": first,
    }
    ends = list(marks.values())
    return {name: end - before for (name, end), before in zip(marks.items(), [died, *ends], strict=False)}


def _when_said(machines: Machines, fence: int, words: str) -> float:
    """The time at which an attempt's log is seen to hold some words."""

    def recorded() -> float:
        logs = machines.logs().glob(f"*-{fence:04d}-*.log")
        return time.time() if any(words in log.read_text() for log in logs) else 0.0

    moment: float = wait_until(recorded, 120)
    return moment
