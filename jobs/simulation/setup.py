"""Simulators made from a scenario, or from a farm as it is now."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import replace

from sqlalchemy import Connection, select

from jobs.db.maintenance import entries_by_node
from jobs.db.queues import list_queues
from jobs.db.rates import read_rates, slot_seconds_left
from jobs.db.records import QueueRules
from jobs.db.state_machine import ENDED
from jobs.db.submission import geometry, useful_ranks
from jobs.db.tables import jobs as job_table
from jobs.db.time_window import TimeWindow
from jobs.scheduler.dispatcher import nodes_up
from jobs.scheduler.placement import Node
from jobs.simulation.farm import Job, Queue, SimulatedFarm
from jobs.simulation.scenario import JobEntry, Scenario
from jobs.simulation.simulator import Simulator
from jobs.simulation.workload import MeasuredWorkload, PlannedWorkload
from jobs.tags import read_tags
from render.errors import BadInput, ModelNotUsable
from render.model_info import ModelInfo
from render.models.model_paths import find_model_paths, model_info
from render.spec import Spec


def from_scenario(scenario: Scenario) -> Simulator:
    """A simulator of a scenario. Raises `BadInput` for a job that its model cannot render."""
    start = time.time() if scenario.start is None else scenario.start.timestamp()
    queues = {
        entry.name: Queue(
            rules=QueueRules(name=entry.name, limit=entry.limit, shares=dict(entry.shares)),
            priority=entry.priority,
            window=entry.time_window,
        )
        for entry in scenario.queues
    }
    nodes = {
        name: Node(name=name, slots=group.slots, device=group.device, tags=frozenset(group.tags))
        for group in scenario.nodes
        for name in (f"{group.name}-{group.slots}-{number}" for number in range(group.count))
    }
    jobs = [
        job
        for number, entry in enumerate(scenario.jobs)
        for job in _jobs_of(entry, scenario, number, start, queues)
    ]
    return Simulator(
        farm=SimulatedFarm(nodes=nodes, queues=queues),
        jobs=jobs,
        start=start,
        times=scenario.models,
        faults=scenario.faults,
        checkpoint_s=scenario.checkpoint_s,
        round_s=scenario.round_s,
    )


def _jobs_of(
    entry: JobEntry, scenario: Scenario, number: int, start: float, queues: dict[str, Queue]
) -> list[Job]:
    times, spec, options = scenario.models[entry.model], entry.spec, entry.options
    workload = PlannedWorkload(spec, entry.model, times)
    ranks = (options.ranks, options.ranks) if options.ranks else (1, useful_ranks(spec, times.info))
    priority = entry.priority
    if priority is None:
        priority = queues[entry.queue].priority if entry.queue in queues else Queue.priority
    return [
        Job(
            name=f"{number}-{each}",
            workload=workload,
            owner=entry.owner,
            queue=entry.queue,
            priority=priority,
            created=start + entry.at_s + each * entry.every_s,
            least=ranks[0],
            most=ranks[1],
            tags=frozenset(options.require_tag),
        )
        for each in range(entry.count)
    ]


def from_farm(connection: Connection, add_nodes: int = 0) -> Simulator:
    """A simulator of a farm's nodes and of its jobs that have not ended, paused ones left out.

    `add_nodes` adds so many nodes like the one with the most slots. Raises `BadInput` when no node is up, or
    when a job's model has no measured rate.
    """
    nodes = {node.name: replace(node, maintenance=None) for node in nodes_up(connection)}
    if not nodes:
        raise BadInput("nodes", 0, "are up; start an agent, or simulate a scenario from a file")
    largest = max(nodes.values(), key=lambda node: (node.slots, node.name))
    for number in range(add_nodes):
        name = f"{largest.name}+{number + 1}"
        nodes[name] = replace(largest, name=name)
    start = time.time()
    known = {queue["name"]: queue for queue in list_queues(connection)}
    queues = {
        name: Queue(
            rules=QueueRules(name=name, limit=queue["group_limit"], shares=dict(queue["shares"])),
            priority=queue["priority"],
            window=None if queue["time_window"] is None else TimeWindow.parse(queue["time_window"]),
        )
        for name, queue in known.items()
        if not queue["paused"]
    }
    planned = {name: own for name, own in entries_by_node(connection).items() if name in nodes}
    farm = SimulatedFarm(nodes=nodes, queues=queues, maintenance=planned)
    return Simulator(farm=farm, jobs=_queued_jobs(connection, queues, start), start=start, times={})


def _queued_jobs(connection: Connection, queues: dict[str, Queue], start: float) -> list[Job]:
    rates, infos = (
        read_rates(connection),
        defaultdict[tuple[str | None, ...], list[ModelInfo]](list),
    )
    active = job_table.c.state.not_in((*ENDED, "paused")) & job_table.c.queue.in_(list(queues))
    found = []
    for row in connection.execute(select(job_table).where(active).order_by(job_table.c.created)):
        left = slot_seconds_left(rates, row.model, row.work, row.progress)
        if left is None:
            raise BadInput("model", row.model, "has no measured rate on this farm yet; let one job finish")
        spec = Spec.from_mapping(row.spec)
        info = _info(infos, spec)
        workload = MeasuredWorkload(row.model, left, None if info is None else (geometry(spec), info))
        found.append(
            Job(
                name=row.id,
                workload=workload,
                owner=row.owner,
                queue=row.queue,
                priority=queues[row.queue].priority if row.priority is None else row.priority,
                created=start if row.not_before is None else max(start, row.not_before),
                least=row.least_ranks,
                most=row.most_ranks,
                memory=tuple((ranks, bytes_) for ranks, bytes_ in row.memory or ()),
                tags=read_tags(row.require_tag),
            )
        )
    return found


def _info(known: dict[tuple[str | None, ...], list[ModelInfo]], spec: Spec) -> ModelInfo | None:
    """The model's info where its folder is on this machine; read once for each model."""
    key = spec.model_names
    if key not in known:
        try:
            known[key] = [model_info(find_model_paths(*spec.model_names))]
        except ModelNotUsable:
            known[key] = []
    return known[key][0] if known[key] else None
