"""One claimed part of an attempt: this node's share, from standing by to its end."""

from __future__ import annotations

import contextlib
import socket
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from infra.errors import ServiceError, StoreError
from infra.store.base import Store
from jobs.db.claims import LEASE_S, make_ready, release, rendezvous_endpoint
from jobs.db.outcomes import Tally, fail, finish
from jobs.db.records import Assignment
from jobs.db.state_machine import change_state
from jobs.errors import GroupBrokeOff, GroupFailed, JobError, JobStopped, LostRace
from jobs.farm import Farm, open_images
from jobs.image_store import claim, finished_image
from jobs.input_assets import download_input
from jobs.node.attempt_log import AttemptLog
from jobs.node.attempt_metrics import AttemptMetrics
from jobs.node.heartbeat import Heartbeat, with_retry
from jobs.node.network import interface_of
from jobs.node.progress_snapshot import ProgressSnapshot
from jobs.scheduler.warm_reuse import finish_and_take_next
from render.launch.hardware import gpu_count
from render.launch.rank_group import RankGroup, Rendezvous
from render.launch.request import CHECKPOINT_S, PATIENCE_S, Request
from render.models.model_paths import find_model_paths, model_info
from render.spec import Spec

_MATES_S = LEASE_S + 2.0
"""A group that breaks off waits so long for the node that knows why to say it first. If that one is dead, its
lease is over by then, and the job goes on at once."""


class Superseded(JobError):
    """This supervisor speaks for nobody any more."""


@dataclass
class AttemptRunner:
    """Renders one part with a group of ranks on this node, and speaks for the attempt meanwhile."""

    farm: Farm
    claimed: Assignment
    group: RankGroup | None
    """A warm one, its model loaded; without it the part starts its own."""
    logs: Path
    leaving: Callable[[], bool]
    """Has this node been asked to end?"""
    idle_since: float | None = None
    """Monotonic time at which the group was done with the picture before."""
    ended: float | None = None
    """Monotonic time at which it was done with this one."""
    next: Assignment | None = None
    """What the group shall render after this, claimed already."""
    _heart: Heartbeat = field(init=False)
    _log: AttemptLog = field(init=False)
    _meter: AttemptMetrics = field(init=False)
    _live: ProgressSnapshot = field(default_factory=ProgressSnapshot)
    _finished: bool = False
    _stages: int = 1
    _heard: bool = False
    """Have the ranks said anything about this request?"""
    _model_seconds: float = 0.0

    def __post_init__(self) -> None:
        self._heart = Heartbeat(self.farm.database, self.claimed)
        self._log = AttemptLog(self.logs, self.claimed)
        self._meter = AttemptMetrics(self.claimed)

    def run(self) -> RankGroup | None:
        """The group, if it can be kept warm; None when it has ended."""
        self._heart.start()
        self._log.begin()
        self._meter.begin(self.farm.database)
        try:
            return self._render(self._stand_by())
        except (Superseded, LostRace) as exc:
            self._log.say(f"left: {exc}")
        except JobStopped as exc:
            why = f", since node {self.claimed.node} ends" if self.leaving() else ""
            self._fail(exc, f"{exc}{why}", None, None)
        except GroupBrokeOff as exc:
            if self.claimed.nodes == 1:
                self._fail(exc, _last_line(exc), self.claimed.node)
            else:
                # The node whose rank failed knows the reason, and its word should come first. If none comes,
                # a node or the network between them is gone, and the job is not to blame.
                self._await_mates()
                self._fail(exc, _last_line(exc), None, "outages")
        except (ServiceError, StoreError, OSError) as exc:
            self._fail(exc, f"{type(exc).__name__}: {exc}".splitlines()[0], None, "outages")
        except JobError as exc:
            # What the ranks need and is away is not their node's fault, nor the job's.
            outage = isinstance(exc, GroupFailed) and exc.outage
            node = None if outage else self.claimed.node
            self._fail(exc, str(exc), node, "outages" if outage else "attempts")
        except Exception as exc:
            traceback.print_exc()
            self._fail(exc, f"{type(exc).__name__}: {exc}".splitlines()[0], self.claimed.node)
        finally:
            self._heart.stop()
            self._log.collect(open_images(self.farm.settings))
            # A part of a finished group does not let go: its attempt may not have been ended yet.
            if not self._finished:
                with contextlib.suppress(ServiceError):
                    with_retry(self.farm.database, lambda connection: release(connection, self.claimed))
        return None

    def _await_mates(self) -> None:
        end = time.monotonic() + _MATES_S
        while self._heart.lost is None and time.monotonic() < end:
            time.sleep(0.2)

    def _fail(self, exc: Exception, reason: str, node: str | None, tally: Tally | None = "attempts") -> None:
        self._meter.on_failure(exc)
        with contextlib.suppress(OSError):
            self._log.say(f"ended: {reason}")
        with_retry(
            self.farm.database,
            lambda connection: fail(connection, self.claimed.attempt, reason, node, tally),
        )

    def _stand_by(self) -> Rendezvous | None:
        """Say that this node is ready; where the ranks meet, once all nodes are."""
        part = self.claimed
        if part.begun:
            return None
        point = f"{part.address}:{_free_port(part.address)}" if part.place == 0 else None
        with_retry(self.farm.database, lambda connection: make_ready(connection, part, point))
        while (met := self._meeting_point()) is None:
            if self._tick():
                raise JobStopped("stopped before the group was complete")
            time.sleep(0.2)
        if part.place == 0:
            self._begin()
        if part.nodes == 1:
            return None
        host, _, port = met.rpartition(":")
        return Rendezvous(
            nodes=part.nodes,
            place=part.place,
            host=host,
            port=int(port),
            interface=interface_of(part.address),
        )

    def _meeting_point(self) -> str | None:
        try:
            with self.farm.database.read() as connection:
                return rendezvous_endpoint(connection, self.claimed)
        except ServiceError:
            # The heart knows when to give up.
            return None

    def _render(self, rendezvous: Rendezvous | None) -> RankGroup | None:
        part = self.claimed
        spec = Spec.from_mapping(part.spec)
        folders = find_model_paths(spec.model, spec.refiner)
        info = model_info(folders)
        if spec.digest(info.digest) != part.digest:
            names = spec.model if spec.refiner is None else f"{spec.model} or {spec.refiner}"
            raise JobError(f"model {names} on node {part.node} is not the one that was submitted")
        patience_s = self.farm.settings.seconds("store_patience_s", PATIENCE_S)
        images = open_images(self.farm.settings, patience_s=patience_s)
        out = images.within(part.digest)
        done = self._ours(out, spec.canonical_json(info.digest)) if part.place == 0 else None
        spec = download_input(spec, images, self.logs.parent)
        if done is not None:
            self._finish(done["root"])
            self._finished = True
            return self.group
        request = Request(
            spec=asdict(spec),
            folders=folders,
            info=info,
            device="auto",
            out=out.url(),
            patience_s=patience_s,
            checkpoint_s=self.farm.settings.seconds("checkpoint_s", CHECKPOINT_S),
            slots=part.slots,
            log=str(self._log.path),
            # A group of one node stays; the ranks of several would have to agree on what comes next.
            last=part.nodes > 1,
        )
        gpus = part.slots if gpu_count() else None
        group = self.group or RankGroup(len(part.slots), rendezvous=rendezvous, gpus=gpus)
        stays = False
        try:
            if self.idle_since is not None:
                self._log.say(f"taken over after {time.monotonic() - self.idle_since:.3f} s")
            done = self._rendered_by(group, request)
            self.ended = time.monotonic()
            if part.place == 0:
                assert done is not None
                self._finish(done["root"])
            self._finished = True
            stays = not request.last
        finally:
            if not stays:
                group.close()
        return group if stays else None

    def _ours(self, out: Store, canonical_spec: str) -> dict[str, Any] | None:
        """The manifest if the image is there already; else its place is claimed."""
        done = finished_image(out, self.claimed.digest)
        if done is None:
            claim(out, self.claimed.digest, canonical_spec)
        return done

    def _rendered_by(self, group: RankGroup, request: Request) -> dict[str, Any] | None:
        """Render; where a warm group turns out to be dead before it has begun, with new processes."""
        was_warm = group.alive()
        if not was_warm:
            self._meter.on_start()
        try:
            return group.render(request, self._hear, on_tick=self._tick)
        except GroupBrokeOff as exc:
            if not was_warm or self._heard:
                raise
            self._meter.on_failure(exc)
        group.close()
        self._meter.on_start()
        return group.render(request, self._hear, on_tick=self._tick)

    def _finish(self, root: str) -> None:
        """Say that the image is there; a group that stays takes the next job in the same transaction."""
        part, seconds = self.claimed, self._model_seconds
        if part.nodes > 1 or self.leaving():
            with_retry(self.farm.database, lambda connection: finish(connection, part, root, seconds))
        else:
            self.next = with_retry(
                self.farm.database, lambda connection: finish_and_take_next(connection, part, root, seconds)
            )
        self._log.say(f"done: root {root}")

    def _hear(self, news: dict[str, Any]) -> None:
        """Take the ranks' news; never touches the database, which may be away just now."""
        self._log.hear(news)
        self._meter.on_event(news)
        self._heard = True
        if news["kind"] == "stage":
            self._stages = news["stages"]
        elif news["kind"] == "step":
            # A stage costs about four times the one before; the last one is most of the work.
            whole = sum(4.0**number for number in range(self._stages))
            before = sum(4.0**number for number in range(news["stage"]))
            self._model_seconds += news["phases"]["model"]
            if self.claimed.place == 0:
                share = news["step"] / news["steps"]
                self._heart.progress = 0.95 * (before + 4.0 ** news["stage"] * share) / whole
        elif news["kind"] == "tiles" and self.claimed.place == 0:
            self._heart.publishing = True
        self._heart.live = self._live.hear(news, self._heart.progress)

    def _tick(self) -> bool:
        """Should the ranks stop after their step? Raises `Superseded` when this attempt has been ended."""
        if self._heart.lost is not None:
            raise Superseded(self._heart.lost)
        return self._heart.stopping or self.leaving()

    def _begin(self) -> None:
        part = self.claimed
        reason = f"group of {part.nodes} node{'' if part.nodes == 1 else 's'} is complete"
        with_retry(
            self.farm.database,
            lambda connection: change_state(
                connection, part.job, "placing", "rendering", reason, expected_fence=part.fence
            ),
        )


def _last_line(exc: Exception) -> str:
    """The last words of a group's log, which tell more than that it broke off."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    return f"the group broke off: {lines[-1][:300]}" if len(lines) > 1 else lines[0]


def _free_port(address: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
        return port
