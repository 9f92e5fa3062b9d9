"""The supervisor of one node's part of an attempt: `python -m jobs.node.supervisor NODE ATTEMPT HOME`.

It claims the part, stands by until the whole group is there, runs torchrun, and speaks for the attempt in
the database. When the attempt is over, or the job has been cancelled, paused or given to others, it kills
its ranks and goes. It dies with its agent, and its ranks with it.
"""

from __future__ import annotations

import os
import socket
import sys
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.errors import ServiceError
from infra.settings import read_settings
from jobs.errors import JobCancelled, JobError, LostRace
from jobs.farm import Farm, images_folder, open_farm
from jobs.image_folder import finished_image, marker_text
from jobs.node.lifeline import die_with_parent
from jobs.node.request import Request
from jobs.node.torchrun import Rendezvous, run_group
from jobs.state.attempts import Assignment, beat, claim, fail, finish, make_ready, meeting_point
from jobs.state.machine import change
from render.errors import RenderError
from render.models.folder import read_facts, resolve_model
from render.spec import Spec

_BEAT_S = 2.0
_PATIENCE_S = 30.0
"""The database may be away for so long before a supervisor gives its part up; its lease is gone by then."""


class Superseded(JobError):
    """This supervisor speaks for nobody any more."""


def main() -> int:
    """Render the node's part; 0 also when there was nothing to do."""
    die_with_parent(os.getppid())
    node, attempt, home = sys.argv[1:4]
    with open_farm(read_settings({})) as farm:
        supervisor = f"{node}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        with farm.database.write() as connection:
            part = claim(connection, attempt, node, supervisor)
        if part is None:
            return 0
        return _Supervision(farm, part, Path(home)).run()


@dataclass
class _Supervision:
    """One claimed part, from standing by to its end."""

    farm: Farm
    part: Assignment
    home: Path
    _heard: float = field(default_factory=time.monotonic)
    _beaten: float = 0.0
    _progress: float | None = None
    _stage: dict[str, Any] = field(default_factory=dict)
    _publishing: bool = False
    _model_seconds: float = 0.0

    def run(self) -> int:
        try:
            self._render(self._stand_by())
        except (Superseded, LostRace) as exc:
            print(f"left: {exc}", flush=True)
            return 0
        except JobCancelled:
            print("stopped with the node", flush=True)
            with self.farm.database.write() as connection:
                fail(connection, self.part.attempt, f"node {self.part.node} stopped", None, counts=False)
            return 4
        except (JobError, RenderError) as exc:
            print(f"failed: {exc}", flush=True)
            with self.farm.database.write() as connection:
                fail(connection, self.part.attempt, str(exc).splitlines()[0], self.part.node)
            return 3
        return 0

    def _stand_by(self) -> Rendezvous | None:
        """Say that this node is ready; where the ranks meet, once all nodes are."""
        point = f"{self.part.address}:{_free_port(self.part.address)}" if self.part.place == 0 else None
        with self.farm.database.write() as connection:
            make_ready(connection, self.part, point)
        while True:
            with self.farm.database.read() as connection:
                met = meeting_point(connection, self.part)
            if met is not None:
                break
            self._tick()
            time.sleep(0.1)
        if self.part.place == 0:
            with self.farm.database.write() as connection:
                reason = f"group of {self.part.nodes} nodes is complete"
                change(connection, self.part.job, "placing", "rendering", reason, under=self.part.fence)
        if self.part.nodes == 1:
            return None
        host, _, port = met.rpartition(":")
        return Rendezvous(nodes=self.part.nodes, place=self.part.place, host=host, port=int(port))

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
            log = self.home / f"{self.part.job}-{self.part.fence}-{self.part.node}.log"
            done = run_group(
                request, self.part.slots, self._hear, rendezvous=rendezvous, log=log, on_tick=self._tick
            )
        if self.part.place == 0:
            assert done is not None
            self._publish()
            with self.farm.database.write() as connection:
                finish(connection, self.part, done["root"], self._model_seconds)

    def _hear(self, news: dict[str, Any]) -> None:
        if self.part.place != 0:
            return
        if news["kind"] == "stage":
            self._stage = news
        elif news["kind"] == "step":
            stages, stage = self._stage["stages"], news["stage"]
            # A stage costs about four times the one before; the last one is most of the work.
            before = sum(4.0**number for number in range(stage))
            whole = sum(4.0**number for number in range(stages))
            self._progress = 0.95 * (before + 4.0**stage * news["step"] / news["steps"]) / whole
            self._model_seconds += news["phases"]["model"]
        elif news["kind"] == "tiles":
            self._publish()

    def _publish(self) -> None:
        """rendering > publishing, once: from here on the picture is let be finished."""
        if not self._publishing:
            with self.farm.database.write() as connection:
                change(
                    connection,
                    self.part.job,
                    "rendering",
                    "publishing",
                    "all steps done",
                    under=self.part.fence,
                )
            self._publishing = True

    def _tick(self) -> None:
        """Renew the lease now and then; raises `Superseded` when somebody has ended this attempt."""
        moment = time.monotonic()
        if moment - self._beaten < _BEAT_S:
            return
        self._beaten = moment
        try:
            with self.farm.database.write() as connection:
                held = beat(connection, self.part, self._progress)
        except ServiceError:
            if moment - self._heard > _PATIENCE_S:
                raise
            return
        self._heard = moment
        if not held:
            raise Superseded(f"attempt {self.part.attempt} is over, or its job went another way")


def _free_port(address: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    sys.exit(main())
