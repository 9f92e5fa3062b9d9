"""Jobs that can never run on the nodes that the farm has, or as long as others have failed, and why."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, Text, cast, func, select

from jobs.db.dependencies import hopeless
from jobs.db.state_machine import ENDED
from jobs.db.tables import jobs
from jobs.scheduler.dispatcher import nodes_up, pending_job
from jobs.scheduler.pending_jobs import GroupSize, PendingJob
from jobs.scheduler.placement import Node, fits
from jobs.tags import read_tags, tags_text

_CHUNK = 500


def cannot_run(nodes: Sequence[Node], job: PendingJob) -> str | None:
    """The sentence that says why a job does not fit on these nodes even while nothing else runs.

    None if it fits, and without any slot: then nobody knows what the farm will have.
    """
    if not any(node.slots for node in nodes) or fits(nodes, job):
        return None
    suitable = [node for node in nodes if node.slots and job.tags <= node.tags]
    if not suitable:
        has = "has it" if len(job.tags) == 1 else "has both" if len(job.tags) == 2 else "has them all"
        return f"cannot run: needs {tags_text(job.tags)}, no node {has}"
    sizes = list(reversed(job.sizes))
    nodes = suitable
    if all(node.vram_bytes is None for node in nodes):
        # Memory refuses nothing then, so the number of slots is what is missing.
        sizes = [GroupSize(least=job.least, most=job.most, memory_bytes=None)]
    needs = ", or ".join(size_text(size) for size in sizes)
    there = f"on nodes with {tags_text(job.tags)}, which have" if job.tags else "the farm has"
    return f"cannot run: needs {needs}{' ' if job.tags else ', '}{there} {_slots_of(nodes, job)}"


def find_impossible_jobs(connection: Connection, ids: Iterable[str]) -> dict[str, str]:
    """Of these jobs: the queued ones that cannot run, each with the reason."""
    up, found = nodes_up(connection, usable=False), {}
    wanted, stuck = list(ids), hopeless(connection)
    for start in range(0, len(wanted), _CHUNK):
        queued = select(jobs).where(jobs.c.id.in_(wanted[start : start + _CHUNK]), jobs.c.state == "queued")
        for row in connection.execute(queued):
            reason = _stuck(stuck.get(row.dependency)) or cannot_run(up, pending_job(row))
            if reason is not None:
                found[row.id] = reason
    return found


def _stuck(waits_for: str | None) -> str | None:
    """The sentence for a job whose predecessors will not be done by themselves."""
    return None if waits_for is None else f"cannot run: waits for {waits_for}"


def count_impossible_jobs(connection: Connection) -> dict[str, tuple[int, str]]:
    """By queue: how many of its unfinished jobs cannot run, and the reason of some of them."""
    up = nodes_up(connection, usable=False)
    memory = cast(jobs.c.memory, Text).label("memory_text")
    stuck = hopeless(connection)
    shape = (jobs.c.queue, jobs.c.least_ranks, jobs.c.most_ranks, jobs.c.dependency, jobs.c.require_tag)
    # The database counts: there may be a hundred thousand jobs, but few shapes of them.
    counted = select(*shape, memory, func.count().label("jobs"), func.min(jobs.c.id).label("id"))
    counted = counted.where(jobs.c.state.not_in((*ENDED, "paused"))).group_by(*shape, memory)
    found: dict[str, tuple[int, str]] = {}
    for row in connection.execute(counted):
        reason = _stuck(stuck.get(row.dependency)) or cannot_run(up, _job_of_shape(row))
        if reason is not None:
            found[row.queue] = found.get(row.queue, (0, ""))[0] + row.jobs, reason
    return found


def _job_of_shape(row: Any) -> PendingJob:
    sizes = json.loads(row.memory_text or "null") or ()
    return PendingJob(
        job=row.id,
        least=row.least_ranks,
        most=row.most_ranks,
        memory=tuple((ranks, bytes_) for ranks, bytes_ in sizes),
        tags=read_tags(row.require_tag),
    )


def size_text(size: GroupSize) -> str:
    """`4 slots with 12.0 GiB each`."""
    slots = "1 slot" if size.least == 1 else f"{size.least} slots"
    each = " each" if size.least > 1 else ""
    return slots if size.memory_bytes is None else f"{slots} with {size.memory_bytes / 2**30:.1f} GiB{each}"


def _slots_of(nodes: Sequence[Node], job: PendingJob) -> str:
    """A group never mixes kinds of nodes, so the largest kind counts."""
    kinds = Counter[tuple[str, str]]()
    for node in nodes:
        kinds[node.device, node.numerics] += node.slots
    most = max(kinds.values())
    text = str(most) if len(kinds) == 1 else f"at most {most} of one kind"
    known = [node.vram_bytes for node in nodes if node.vram_bytes is not None]
    if known and job.memory:
        text += f" with up to {max(known) / 2**30:.1f} GiB"
    return text
