"""Groups of two nodes, each a network namespace, lose a rank and then a node at random steps.

A node is lost in three ways: SIGKILL to all of its processes, SIGSTOP to all of them, a cable that is cut.
When it is the group's first one, this program tells the other to take its place, as a farm's database would.
"""

from __future__ import annotations

import json
import os
import queue
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from bench.elastic_image import SMALL, root_of
from bench.elastic_node import NODES, RANKS_OF_NODE
from bench.table import Row
from render.events import EpochBegan, FirstNodeLost, ImageDone, NodeLost, RankStarted, StepDone, from_json
from render.launch.rendezvous_config import SECRET_VARIABLE, Move
from tests.support.network import Network, network

IMAGES = 15
"""Each of them loses a rank and a node."""
_PATIENCE_S = 300.0
_ENDS_S = 60.0
"""A node that comes back has so long to end its processes."""


@dataclass
class Figures:
    """Seconds from each death to the step after it, and what was not as it should be."""

    of_ranks: list[float] = field(default_factory=list)
    of_nodes: list[float] = field(default_factory=list)
    noticed: list[float] = field(default_factory=list)
    """From the moment at which the group knew of a node's loss."""
    faults: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    """Images that the group has not finished."""
    wrong: int = 0
    left: int = 0
    """Processes that are there after a node has come back."""


def rows(images: int = IMAGES) -> Iterator[Row]:
    """So many images, each of a new group."""
    draw, figures = random.Random(11), Figures()
    kinds = ["SIGKILL", "SIGSTOP", "cut cable"]
    with network(NODES) as hosts, tempfile.TemporaryDirectory(prefix="elastic-") as name:
        folder = Path(name)
        wanted = root_of(SMALL, folder / "alone")
        for number in range(images):
            _Image(hosts, folder / str(number), draw, figures).run(kinds[number % len(kinds)], wanted)
    each = ", ".join(f"{count} {name}" for name, count in sorted(figures.faults.items()))
    every = figures.of_ranks + figures.of_nodes
    ranks = NODES * RANKS_OF_NODE
    yield Row(f"{NODES} nodes, {ranks} ranks, {images} images: deaths ({each})", len(every), "")
    yield Row("attempts lost", figures.lost, "<= 0")
    yield Row("images whose root is not that of one rank", figures.wrong, "<= 0")
    yield Row("processes left by nodes that came back", figures.left, "<= 0")
    yield Row("from a death to the next step: seconds, median", median(every), "<= 2")
    yield Row("... of a rank, the slowest", max(figures.of_ranks), "<= 3")
    yield Row("... of a node, the slowest", max(figures.of_nodes), "")
    noticed = figures.noticed + figures.of_ranks
    yield Row("from when it is noticed: seconds, median", median(noticed), "<= 1")
    yield Row("... the slowest", max(noticed), "<= 3")


class _Image:
    """One image by a group of its own."""

    def __init__(self, hosts: Network, out: Path, draw: random.Random, figures: Figures) -> None:
        self._hosts, self._out, self._draw, self._figures = hosts, out, draw, figures
        self._news: queue.Queue[tuple[int, dict[str, Any]]] = queue.Queue()
        self._pids: dict[int, int] = {}
        self._struck = draw.randrange(NODES)
        self._port, secret = draw.randint(20_000, 30_000), secrets.token_hex(32)
        self._nodes = [self._start(place, str(self._port), secret) for place in range(NODES)]

    def run(self, kind: str, wanted: str) -> None:
        struck = self._struck
        processes = []
        try:
            self._steps(self._draw.randint(2, 6))
            rank = self._draw.choice(sorted(self._pids))
            self._figures.faults["rank"] += 1
            os.kill(self._pids[rank], signal.SIGKILL)
            self._figures.of_ranks.append(self._recovered(time.monotonic())[0])
            self._steps(self._draw.randint(2, 12))
            processes = _tree(self._nodes[struck])
            self._figures.faults[kind] += 1
            began = time.monotonic()
            self._strike(kind, struck, processes)
            seconds, noticed = self._recovered(began)
            self._figures.of_nodes.append(seconds)
            self._figures.noticed.append(noticed)
            self._until_done(wanted)
        except _Broken as exc:
            self._figures.lost += 1
            print(f"lost: {exc}", file=sys.stderr)
        finally:
            self._hosts.cut(struck, off=False)
            _signal(processes, signal.SIGCONT)
            self._close(processes)

    def _start(self, place: int, port: str, secret: str) -> subprocess.Popen[str]:
        address, host = self._hosts.address(place), self._hosts.address(0)
        words = ["-m", "bench.elastic_node", str(place), address, host, port, str(self._out)]
        node = subprocess.Popen(
            [*self._hosts.on(place), sys.executable, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {SECRET_VARIABLE: secret},
        )

        def read() -> None:
            assert node.stdout is not None
            for line in node.stdout:
                self._news.put((place, json.loads(line)))

        threading.Thread(target=read, daemon=True).start()
        return node

    def _next(self) -> tuple[float, Any]:
        """The next event of the node that is not struck: (time, event)."""
        while True:
            try:
                place, values = self._news.get(timeout=_PATIENCE_S)
            except queue.Empty:
                raise _Broken("nothing happens") from None
            if "ended" in values:
                if place != self._struck and values["ended"] != "done":
                    raise _Broken(values["ended"])
                continue
            event = from_json(json.dumps(values["event"]))
            if isinstance(event, RankStarted):
                self._pids[event.rank] = event.pid
            elif place != self._struck:
                if isinstance(event, FirstNodeLost):
                    self._move(place)
                return values["time"], event

    def _move(self, place: int) -> None:
        """Have a node take the place of the first one."""
        move = Move(first=place, host=self._hosts.address(place), port=self._port, nodes=(place,))
        pipe = self._nodes[place].stdin
        assert pipe is not None
        print(json.dumps(asdict(move)), file=pipe, flush=True)

    def _steps(self, count: int) -> None:
        while count > 0:
            _, event = self._next()
            count -= isinstance(event, StepDone)
            if isinstance(event, ImageDone):
                raise _Broken("the image was done before the fault")

    def _recovered(self, since: float) -> tuple[float, float]:
        """Seconds until the first step of the next epoch, from the death and from its being noticed."""
        noticed, formed = since, False
        while True:
            moment, event = self._next()
            match event:
                case NodeLost() | FirstNodeLost():
                    noticed = moment
                case EpochBegan() if moment > since:
                    formed = True
                case StepDone() if formed:
                    return moment - since, moment - noticed
                case ImageDone():
                    raise _Broken("the image was done without another step")

    def _strike(self, kind: str, place: int, processes: list[psutil.Process]) -> None:
        if kind == "cut cable":
            self._hosts.cut(place)
        else:
            _signal(processes, signal.SIGSTOP if kind == "SIGSTOP" else signal.SIGKILL)

    def _until_done(self, wanted: str) -> None:
        while True:
            _, event = self._next()
            if isinstance(event, ImageDone):
                self._figures.wrong += event.root != wanted
                return

    def _close(self, struck: list[psutil.Process]) -> None:
        """Both nodes end when the image is done, also one that has come back."""
        for node in self._nodes:
            assert node.stdin is not None
            node.stdin.close()
        _, left = psutil.wait_procs(struck, timeout=_ENDS_S)
        self._figures.left += len(left)
        _signal(left, signal.SIGKILL)
        for node in self._nodes:
            node.wait(60)


class _Broken(Exception):
    """The group has not done what it should."""


def _tree(node: subprocess.Popen[str]) -> list[psutil.Process]:
    own = psutil.Process(node.pid)
    return [own, *own.children(recursive=True)]


def _signal(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue
