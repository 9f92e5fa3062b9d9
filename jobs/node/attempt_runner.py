"""Runs one claimed part of an attempt: this node's share, from its claim to its end."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from infra.errors import ServiceError, StoreError
from infra.store.base import Store
from jobs.db.claims import LEASE_S, attempt_folder, make_ready, record_folder, release, rendezvous_endpoint
from jobs.db.folders import attempted_folders
from jobs.db.growing import part_left
from jobs.db.outcomes import Tally, fail, finish
from jobs.db.records import Assignment
from jobs.db.shrinking import FirstNode, has_left
from jobs.db.state_machine import change_state
from jobs.errors import JobError, LostRace
from jobs.farm import Farm, open_images
from jobs.image_store import adopt_checkpoint, claim, find_finished, finished_image
from jobs.input_assets import download_input
from jobs.node.attempt_log import AttemptLog
from jobs.node.attempt_metrics import AttemptMetrics
from jobs.node.group_members import GroupMembers, Superseded, TooFewRanks
from jobs.node.health_checks import local_problem
from jobs.node.heartbeat import Heartbeat, with_retry
from jobs.node.network import free_port, interface_of
from jobs.node.progress_snapshot import ProgressSnapshot
from jobs.node.rank_metrics import OBSERVER
from jobs.numerics import local_numerics
from jobs.scheduler.warm_reuse import finish_and_take_next
from jobs.text_encoder import node_text_encoder
from render.errors import BadInput, GroupFailed, GroupLost, Stopped
from render.events import Event, ImageDone, StageStarted, StepDone, TilesWritten
from render.launch.gpus import visible_gpus
from render.launch.rank_group import RankGroup
from render.launch.rendezvous_config import Rendezvous
from render.launch.request import Request
from render.launch.shared_group import SharedGroup, SharedGroupLost
from render.models.model_paths import find_model_paths, model_info
from render.output.manifest import Manifest
from render.spec import Spec

_PEER_REPORT_S = LEASE_S + 2.0
"""A lost group waits so long for the node that knows the reason to report it first. If that one is dead, its
lease is over by then, and the job resumes at once."""
_log = logging.getLogger(__name__)


class WrongModel(JobError):
    """The job's model is another one on this node."""


@dataclass
class AttemptRunner:
    """Renders one part with a group of ranks on this node, and keeps the attempt's lease meanwhile."""

    farm: Farm
    claimed: Assignment
    group: RankGroup | None
    """A warm one, its model loaded; without it the part starts its own."""
    logs: Path
    stopping: Callable[[], bool]
    """Whether this node is shutting down."""
    idle_since: float | None = None
    """Monotonic time at which the group finished the previous image."""
    shared: SharedGroup | None = None
    """In place of `group`: one that renders other images at the same time, and is not this part's to end."""
    slot_seconds: Callable[[], float] | None = None
    """This image's share of the time of a slot that others share; None for a slot that it has to itself."""
    ended: float | None = None
    """Monotonic time at which it finished this one."""
    next: Assignment | None = None
    """The group's next part, claimed already."""
    _heartbeat: Heartbeat = field(init=False)
    _log: AttemptLog = field(init=False)
    _metrics: AttemptMetrics = field(init=False)
    _members: GroupMembers = field(init=False)
    _snapshot: ProgressSnapshot = field(default_factory=ProgressSnapshot)
    _finished: bool = False
    _stages: int = 1
    _has_events: bool = False
    """Whether the ranks have sent any event for this request."""
    _model_seconds: float = 0.0

    def __post_init__(self) -> None:
        self._heartbeat = Heartbeat(self.farm.database, self.claimed)
        self._log = AttemptLog(self.logs, self.claimed)
        self._metrics = AttemptMetrics(self.claimed)
        self._members = GroupMembers(self.farm, self.claimed, self._heartbeat, self._log)

    def run(self) -> RankGroup | None:
        """Returns the group if it can be kept warm, None when it has ended."""
        self._heartbeat.start()
        self._log.begin()
        self._metrics.begin(self.farm.database)
        try:
            return self._render(self._join_rendezvous())
        except (Superseded, LostRace) as exc:
            self._log.write(f"left: {exc}")
        except TooFewRanks as exc:
            self._fail(exc, str(exc), None, "losses")
        except Stopped as exc:
            why = f", since node {self.claimed.node} ends" if self.stopping() else ""
            self._fail(exc, f"{exc}{why}", None, None)
        except SharedGroupLost as exc:
            # It need not be this image's fault. Whatever has failed once is rendered alone from then on.
            self._fail(exc, _last_line(exc), self.claimed.node, "losses")
        except GroupLost as exc:
            if self.claimed.nodes == 1:
                self._fail(exc, _last_line(exc), self.claimed.node)
            else:
                # The node whose rank failed knows the reason and should report it first. If none does, a node
                # or the network between them is gone, and the job is not to blame.
                self._await_peer_report()
                self._fail(exc, _last_line(exc), None, "outages")
        except (ServiceError, StoreError, OSError) as exc:
            self._fail(exc, f"{type(exc).__name__}: {exc}".splitlines()[0], None, "outages")
        except (BadInput, WrongModel) as exc:
            # This node lacks the model, or has another one under its name.
            self._fail(exc, f"node {self.claimed.node}: {exc}", self.claimed.node, "node")
        except (GroupFailed, JobError) as exc:
            tally = _tally(exc)
            # What the ranks need and is away is not their node's fault, nor the job's.
            self._fail(exc, str(exc), None if tally == "outages" else self.claimed.node, tally)
        except Exception as exc:
            _log.exception("attempt %s failed", self.claimed.attempt, extra=self._fields())
            self._fail(exc, f"{type(exc).__name__}: {exc}".splitlines()[0], self.claimed.node)
        finally:
            self._heartbeat.stop()
            self._log.collect(open_images(self.farm.settings))
            # A part of a finished group is not released: its attempt may not have been ended yet.
            if not self._finished:
                with contextlib.suppress(ServiceError):
                    with_retry(self.farm.database, lambda connection: release(connection, self.claimed))
        return None

    def count_start(self) -> None:
        """Count that processes are started for the group."""
        self._metrics.on_start()

    def _await_peer_report(self) -> None:
        end = time.monotonic() + _PEER_REPORT_S
        while self._heartbeat.lost is None and time.monotonic() < end:
            time.sleep(0.2)

    def _fail(self, exc: Exception, reason: str, node: str | None, tally: Tally | None = "attempts") -> None:
        self._metrics.on_failure(exc)
        # What fails on an unhealthy node is not the job's fault.
        if tally == "attempts" and (problem := local_problem(self.logs)) is not None:
            reason, node, tally = (
                f"{reason}; node {self.claimed.node} is unhealthy: {problem}",
                None,
                "outages",
            )
        self._log.write(f"ended: {reason}")

        def end(connection: Connection) -> None:
            if self.claimed.added and not self._members.leads:
                part_left(connection, self.claimed.attempt, self.claimed.node)
                return
            # A node that the group has gone on without ends nothing but its own ranks.
            if not has_left(connection, self.claimed):
                fail(connection, self.claimed.attempt, reason, node, tally)

        with_retry(self.farm.database, end)

    def _join_rendezvous(self) -> Rendezvous | None:
        """Report this node as ready; returns the rendezvous once all nodes are."""
        part = self.claimed
        if part.begun:
            return None
        if part.follows is not None and not part.added and (self.group is None or not self.group.alive()):
            raise Stopped("the warm group of several nodes is not whole any more")
        own = free_port(part.address) if part.place == 0 else None
        self._members.port = own
        point = None if own is None else f"{part.address}:{own}"
        with_retry(self.farm.database, lambda connection: make_ready(connection, part, point))
        while (endpoint := self._endpoint()) is None:
            if self._poll():
                raise Stopped("stopped before the group was complete")
            time.sleep(0.2)
        if part.place == 0:
            self._begin()
        if part.nodes == 1:
            return Rendezvous(interface=interface_of(part.address), opens=part.secret is not None)
        if part.secret is None:
            raise GroupLost("the attempt was placed by an older version of chorale, without a secret")
        self._members.first = FirstNode(place=0, endpoint=endpoint, places=())
        host, _, port = endpoint.rpartition(":")
        return Rendezvous(
            nodes=part.nodes,
            place=part.place,
            host=host,
            port=int(port),
            interface=interface_of(part.address),
            secret=part.secret,
            moves=True,
            joins=part.added,
        )

    def _endpoint(self) -> str | None:
        try:
            with self.farm.database.read() as connection:
                return rendezvous_endpoint(connection, self.claimed)
        except ServiceError:
            # The heartbeat knows when to give up.
            return None

    def _render(self, rendezvous: Rendezvous | None) -> RankGroup | None:
        part = self.claimed
        spec = Spec.from_mapping(part.spec)
        folders = find_model_paths(*spec.model_names)
        info = model_info(folders)
        if spec.digest(info.digest) != part.digest:
            names = " or ".join(name for name in spec.model_names if name is not None)
            raise WrongModel(f"model {names} is not the one that was submitted")
        patience_s = self.farm.settings.store_patience_s
        images = open_images(self.farm.settings, patience_s=patience_s)
        self._check_folder()
        manifest = self._find_or_claim(images, spec.canonical_json(info.digest)) if part.place == 0 else None
        spec = download_input(spec, images, self.logs.parent)
        if manifest is not None:
            # The other nodes of a group wait for this one's ranks, so such a group does not stay.
            self._finish(manifest.root, stays=part.nodes == 1)
            self._finished = True
            return self.group if part.nodes == 1 else None
        request = Request(
            spec=spec.to_dict(),
            folders=folders,
            info=info,
            device="auto",
            out=images.within(part.folder).url(),
            patience_s=patience_s,
            checkpoint_s=self.farm.settings.checkpoint_s,
            text_encoder=node_text_encoder(),
            slots=part.slots,
            log=str(self._log.path),
            observer=OBSERVER,
            last=False,
            at_once=1 if self.shared is None else self.shared.at_once,
        )
        if self.shared is not None:
            self._heartbeat.elastic = False
            self._finish(self.shared.render(request, self._on_event, on_tick=self._poll).root, stays=True)
            self._finished = True
            return None
        group = self.group or make_group(part, rendezvous)
        stays = False
        try:
            if self.idle_since is not None:
                self._log.write(f"taken over after {time.monotonic() - self.idle_since:.3f} s")
            done = self._rendered_by(group, request)
            self.ended = time.monotonic()
            if self._members.slots_changed:
                # Others may get its slots as soon as the image is recorded as done.
                group.close()
            if self._members.leads:
                assert done is not None
                self._finish(done.root, stays=self._members.are_as_placed)
            self._finished, stays = True, self._members.are_as_placed
        except (Superseded, LostRace):
            # The attempt may go on with the other nodes.
            group.leave()
            raise
        finally:
            if not stays:
                group.close()
        return group if stays else None

    def _check_folder(self) -> None:
        """Raise `GroupFailed` if the first node of the group renders with other numerics than this one."""
        part = self.claimed
        if part.place == 0:
            return
        folder = with_retry(self.farm.database, lambda connection: attempt_folder(connection, part))
        if folder != part.folder:
            # Only an older version places such a group; a newer one may place the job next.
            problem = f"node {part.node} has other numerics than the first node of its group"
            raise GroupFailed(f"{problem}; run the same version and the same kind of device", outage=True)

    def _find_or_claim(self, images: Store, canonical_spec: str) -> Manifest | None:
        """The manifest if the image is finished, in this attempt's folder or an earlier one's; else the
        folder is claimed, and a checkpoint of version 0.1 copied into it."""
        part = self.claimed
        own = images.within(part.folder)
        if (done := finished_image(own, part.digest)) is not None:
            return done
        earlier: list[str] = []
        if part.fence > 1:
            earlier = with_retry(self.farm.database, lambda db: attempted_folders(db, part.job))
        others = dict.fromkeys(folder for folder in (*earlier, part.digest) if folder != part.folder)
        if (found := find_finished(images, others, part.digest)) is not None:
            folder, manifest = found
            with_retry(self.farm.database, lambda connection: record_folder(connection, part.attempt, folder))
            return manifest
        claim(own, part.digest, canonical_spec, local_numerics())
        if part.folder != part.digest and adopt_checkpoint(images, part.digest, part.folder):
            self._log.write(f"found a checkpoint of an older version in {part.digest}")
        return None

    def _rendered_by(self, group: RankGroup, request: Request) -> ImageDone | None:
        """Render; where a warm group turns out to be dead before it has begun, with new processes."""
        self._members.begin(group, request)
        was_warm = group.alive()
        if not was_warm:
            self._metrics.on_start()
        try:
            return group.render(request, self._on_event, on_tick=self._poll)
        except GroupLost as exc:
            if not was_warm or self._has_events or self.claimed.nodes > 1:
                raise
            self._metrics.on_failure(exc)
        group.close()
        self._metrics.on_start()
        return group.render(request, self._on_event, on_tick=self._poll)

    def _finish(self, root: str, stays: bool) -> None:
        """Record the image as done; a group that stays takes the next job in the same transaction."""
        part, seconds = self.claimed, self._model_seconds
        of_slot = None if self.slot_seconds is None else self.slot_seconds()
        if not stays or self.stopping():
            with_retry(
                self.farm.database, lambda connection: finish(connection, part, root, seconds, of_slot)
            )
        else:
            self.next = with_retry(
                self.farm.database,
                lambda connection: finish_and_take_next(connection, part, root, seconds, of_slot),
            )
        self._log.write(f"done: root {root}")

    def _on_event(self, event: Event) -> None:
        """Take an event of the ranks; never touches the database, which may be away just now."""
        self._log.on_event(event)
        self._metrics.on_event(event)
        self._members.on_event(event)
        self._has_events = True
        match event:
            case StageStarted():
                self._stages = event.stages
            case StepDone():
                self._model_seconds += event.phases["model"]
                if self._members.leads:
                    self._heartbeat.progress = self._progress(event)
            case TilesWritten() if self._members.leads:
                self._heartbeat.publishing = True
        self._heartbeat.live = self._snapshot.update(event, self._heartbeat.progress)

    def _progress(self, event: StepDone) -> float:
        """Share of the work that is done. A stage costs about four times the one before."""
        whole = sum(4.0**number for number in range(self._stages))
        before = sum(4.0**number for number in range(event.stage))
        return 0.95 * (before + 4.0**event.stage * event.step / event.steps) / whole

    def _fields(self) -> dict[str, Any]:
        """Fields of log records."""
        part = self.claimed
        return {"job": part.job, "attempt": part.attempt, "node": part.node}

    def _poll(self) -> bool:
        """Whether the ranks should stop after their step. Raises `Superseded` when the attempt is over."""
        if self._heartbeat.lost is not None:
            raise Superseded(self._heartbeat.lost)
        if self._heartbeat.too_small is not None:
            raise TooFewRanks(self._heartbeat.too_small)
        self._members.follow(begun=self._has_events)
        return self._heartbeat.stopping or self.stopping()

    def _begin(self) -> None:
        part = self.claimed
        reason = f"group of {part.nodes} node{'' if part.nodes == 1 else 's'} is complete"
        with_retry(
            self.farm.database,
            lambda connection: change_state(
                connection, part.job, "placing", "rendering", reason, expected_fence=part.fence
            ),
        )


def make_group(part: Assignment, rendezvous: Rendezvous | None = None) -> RankGroup:
    """A group for a part, on the GPUs of its slots; it starts with its first image."""
    visible = visible_gpus()
    gpus = tuple(visible[slot].selector for slot in part.slots) if visible else None
    return RankGroup(len(part.slots), rendezvous=rendezvous, gpus=gpus)


def _tally(exc: Exception) -> Tally:
    """What an attempt of which the ranks report a failure counts as."""
    if isinstance(exc, GroupFailed) and exc.outage:
        return "outages"
    # The digest of the spec and of its models was checked: any other node would come to the same.
    return "permanent" if isinstance(exc, GroupFailed) and exc.permanent else "attempts"


def _last_line(exc: Exception) -> str:
    """The last line of a group's log, which gives a reason where there is one."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    return f"the group broke off: {lines[-1][:300]}" if len(lines) > 1 else lines[0]
