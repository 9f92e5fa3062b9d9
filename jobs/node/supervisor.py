"""The supervisor of one node's part of an attempt: `python -m jobs.node.supervisor PARENT NODE ATTEMPT HOME`.

It claims the part, stands by until the whole group is there, runs torchrun, and speaks for the attempt in
the database. When the attempt is over, or the job has been cancelled, paused or given to others, it kills
its ranks and goes. It dies with its agent, and its ranks with it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection

from infra.database import Database
from infra.errors import ServiceError
from infra.settings import read_settings
from jobs.errors import GroupBrokeOff, JobCancelled, JobError, LostRace
from jobs.farm import Farm, images_folder, open_farm
from jobs.image_folder import finished_image, marker_text
from jobs.node.hardware import gpu_count, interface_of
from jobs.node.lifeline import die_with_parent
from jobs.node.request import Request
from jobs.node.torchrun import Rendezvous, cancellable, run_group
from jobs.state.attempts import (
    Assignment,
    beat,
    claim,
    fail,
    finish,
    let_go,
    make_ready,
    meeting_point,
)
from jobs.state.machine import change
from render.models.folder import read_facts, resolve_model
from render.spec import Spec

_BEAT_S = 2.0
_PATIENCE_S = 30.0
"""The database may be away for so long before a supervisor gives its part up."""
_MATES_S = 5.0
"""A group that breaks off waits so long for the node that knows why to say it first."""
Result = TypeVar("Result")


class Superseded(JobError):
    """This supervisor speaks for nobody any more."""


def main() -> int:
    """Render the node's part; 0 also when there was nothing to do."""
    parent, node, attempt, home = sys.argv[1:5]
    die_with_parent(int(parent))
    with cancellable(), open_farm(read_settings({})) as farm:
        supervisor = f"{node}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        part = _patiently(farm.database, lambda connection: claim(connection, attempt, node, supervisor))
        return 0 if part is None else _Supervision(farm, part, Path(home)).run()


def _patiently(database: Database, work: Callable[[Connection], Result]) -> Result:
    """Do it in one transaction, and again while the database is away, for as long as we are patient."""
    end = time.monotonic() + _PATIENCE_S
    while True:
        try:
            with database.write() as connection:
                return work(connection)
        except ServiceError:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)


@dataclass
class _Heart:
    """Renews the part's lease in a thread of its own, whatever the supervisor is busy with."""

    database: Database
    part: Assignment
    progress: float | None = None
    lost: str | None = None
    """Why this supervisor speaks for nobody any more, once that is so."""
    _still: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        threading.Thread(target=self._beat, daemon=True, name="heart").start()

    def stop(self) -> None:
        self._still.set()

    def _beat(self) -> None:
        heard = time.monotonic()
        while not self._still.wait(_BEAT_S) and self.lost is None:
            try:
                with self.database.write() as connection:
                    held = beat(connection, self.part, self.progress)
            except ServiceError as exc:
                if time.monotonic() - heard > _PATIENCE_S:
                    self.lost = str(exc)
                continue
            heard = time.monotonic()
            if not held:
                self.lost = f"attempt {self.part.attempt} is over, or its job went another way"


@dataclass
class _Supervision:
    """One claimed part, from standing by to its end."""

    farm: Farm
    part: Assignment
    home: Path
    _heart: _Heart = field(init=False)
    _stages: int = 1
    _publishing: bool = False
    _published: bool = False
    _model_seconds: float = 0.0

    def __post_init__(self) -> None:
        self._heart = _Heart(self.farm.database, self.part)

    def run(self) -> int:
        self._heart.start()
        try:
            self._render(self._stand_by())
        except (Superseded, LostRace) as exc:
            print(f"left: {exc}", flush=True)
            return 0
        except JobCancelled:
            self._fail(f"node {self.part.node} stopped", None, counts=False)
            return 4
        except GroupBrokeOff as exc:
            # With mates, the node whose rank failed knows the reason; its word should come first.
            if self.part.nodes > 1:
                time.sleep(_MATES_S)
            self._fail(_last_line(exc), self.part.node if self.part.nodes == 1 else None)
            return 3
        except Exception as exc:
            traceback.print_exc()
            self._fail(f"{type(exc).__name__}: {exc}".splitlines()[0], self.part.node)
            return 3
        finally:
            self._heart.stop()
            with contextlib.suppress(ServiceError):
                _patiently(self.farm.database, lambda connection: let_go(connection, self.part))
        return 0

    def _fail(self, reason: str, node: str | None, *, counts: bool = True) -> None:
        print(f"failed: {reason}", flush=True)
        _patiently(
            self.farm.database,
            lambda connection: fail(connection, self.part.attempt, reason, node, counts=counts),
        )

    def _stand_by(self) -> Rendezvous | None:
        """Say that this node is ready; where the ranks meet, once all nodes are."""
        point = f"{self.part.address}:{_free_port(self.part.address)}" if self.part.place == 0 else None
        _patiently(self.farm.database, lambda connection: make_ready(connection, self.part, point))
        while (
            met := _patiently(self.farm.database, lambda connection: meeting_point(connection, self.part))
        ) is None:
            self._tick()
            time.sleep(0.2)
        if self.part.place == 0:
            self._move("placing", "rendering", f"group of {self.part.nodes} nodes is complete")
        if self.part.nodes == 1:
            return None
        host, _, port = met.rpartition(":")
        return Rendezvous(
            nodes=self.part.nodes,
            place=self.part.place,
            host=host,
            port=int(port),
            interface=interface_of(self.part.address),
        )

    def _render(self, rendezvous: Rendezvous | None) -> None:
        spec = Spec.from_mapping(self.part.spec)
        folder = resolve_model(spec.model)
        facts = read_facts(folder)
        if spec.digest(facts.digest) != self.part.digest:
            raise JobError(f"model {spec.model} on node {self.part.node} is not the one that was submitted")
        out = images_folder(self.farm.settings) / self.part.digest
        done = finished_image(out, self.part.digest) if self.part.place == 0 else None
        if done is None:
            request = Request(
                spec=self.part.spec,
                model=str(folder),
                facts=facts,
                device="auto",
                out=str(out),
                marker=marker_text(self.part.digest, spec.canonical_json(facts.digest)),
                news="",
            )
            done = run_group(
                request,
                len(self.part.slots),
                self._hear,
                rendezvous=rendezvous,
                gpus=self.part.slots if gpu_count() else None,
                log=self.home / f"{self.part.job}-{self.part.fence}-{self.part.node}.log",
                on_tick=self._tick,
            )
        if self.part.place == 0:
            assert done is not None
            root, seconds = done["root"], self._model_seconds
            if not self._published:
                self._move("rendering", "publishing", "all steps done")
            _patiently(self.farm.database, lambda connection: finish(connection, self.part, root, seconds))

    def _hear(self, news: dict[str, Any]) -> None:
        """Take the ranks' news; never touches the database, which may be away just now."""
        if news["kind"] == "stage":
            self._stages = news["stages"]
        elif news["kind"] == "step":
            # A stage costs about four times the one before; the last one is most of the work.
            whole = sum(4.0**number for number in range(self._stages))
            before = sum(4.0**number for number in range(news["stage"]))
            self._model_seconds += news["phases"]["model"]
            if self.part.place == 0:
                share = news["step"] / news["steps"]
                self._heart.progress = 0.95 * (before + 4.0 ** news["stage"] * share) / whole
        elif news["kind"] == "tiles" and self.part.place == 0:
            self._publishing = True

    def _tick(self) -> None:
        """Raises `Superseded` when this attempt has been ended; says once that all steps are done."""
        if self._heart.lost is not None:
            raise Superseded(self._heart.lost)
        if self._publishing and not self._published:
            with contextlib.suppress(ServiceError):
                self._move("rendering", "publishing", "all steps done", patient=False)
                self._published = True

    def _move(self, old: str, new: str, reason: str, *, patient: bool = True) -> None:
        def work(connection: Connection) -> None:
            change(connection, self.part.job, old, new, reason, under=self.part.fence)

        if patient:
            _patiently(self.farm.database, work)
        else:
            with self.farm.database.write() as connection:
                work(connection)


def _last_line(exc: Exception) -> str:
    """The last words of a group's log, which tell more than that it broke off."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    return f"the group broke off: {lines[-1][:300]}" if len(lines) > 1 else lines[0]


def _free_port(address: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    sys.exit(main())
