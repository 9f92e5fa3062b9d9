"""The series that a node's `/metrics` shows: names, kinds, labels and what they mean. Pure; serves nothing.

Base units only: seconds, bytes, ratios from 0 to 1. Labels are bounded: never a job, a prompt or a process.
Dashboards and rules are held against this table by tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Literal

LABELS = frozenset({"node", "slot", "queue", "model", "phase", "operation", "reason", "outcome"})
_STEP_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_REQUEST_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_LONG_S = (0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_IMAGE_S = (1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0, 14400.0)


@dataclass(frozen=True, kw_only=True)
class Series:
    """One name. `buckets` are those of a histogram."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    def exported(self) -> tuple[str, ...]:
        """The names that Prometheus stores."""
        if self.kind == "histogram":
            return tuple(f"{self.name}_{part}" for part in ("bucket", "sum", "count"))
        return (self.name,)


def _counter(name: str, help: str, *labels: str) -> Series:
    return Series(name=name, kind="counter", help=help, labels=("node", *labels))


def _seconds(name: str, help: str, buckets: tuple[float, ...], *labels: str) -> Series:
    return Series(name=name, kind="histogram", help=help, labels=("node", *labels), buckets=buckets)


def _slot(name: str, help: str) -> Series:
    return Series(name=name, kind="gauge", help=help, labels=("node", "slot"))


def _farm(name: str, help: str, *labels: str) -> Series:
    return Series(name=name, kind="gauge", help=help, labels=labels)


RESTART_REASONS = ("broke_off", "failed", "lost", "outage", "stopped")
"""The group died without a word, told of a fault, was lost with its node, lacked a service, was stopped."""

MEASURED = (
    _counter("chorale_images_total", "Images that were finished, counted where rank 0 is.", "model"),
    _counter("chorale_pixels_total", "Pixels that the slot's rank has decoded.", "slot", "model"),
    _counter(
        "chorale_steps_total",
        "Steps that the slot's rank has done; the ranks of a group all do the same steps.",
        "slot",
        "model",
    ),
    _counter("chorale_model_calls_total", "Batches of windows that the model has seen.", "slot", "model"),
    _counter("chorale_model_seconds_total", "Seconds in calls of the model.", "slot", "model"),
    _counter("chorale_border_bytes_total", "Bytes of border latents said to the other ranks.", "slot"),
    _seconds("chorale_image_seconds", "Seconds of the attempt that finished an image.", _IMAGE_S, "model"),
    _seconds(
        "chorale_step_seconds",
        "Seconds of a step by phase (model, wait, fuse), and of a decoded block (decode, encode, upload).",
        _STEP_S,
        "slot",
        "phase",
    ),
    _seconds(
        "chorale_exchange_seconds",
        "Seconds from the start of a step's gather until the rank has taken it; the model works meanwhile.",
        _STEP_S,
        "slot",
    ),
    _seconds("chorale_checkpoint_seconds", "Seconds to store a checkpoint.", _REQUEST_S, "outcome"),
    _counter("chorale_checkpoint_bytes_total", "Bytes of checkpoints that were stored."),
    _counter("chorale_store_requests_total", "Requests to the object store.", "operation", "outcome"),
    _counter("chorale_store_bytes_total", "Bytes put into or got from the object store.", "operation"),
    _seconds("chorale_store_seconds", "Seconds of a request to the object store.", _REQUEST_S, "operation"),
    _counter("chorale_group_starts_total", "Groups of ranks that were started; a warm one is not."),
    _counter(
        "chorale_group_restarts_total",
        "Attempts that ended without an image, so that a group has to take the job up again.",
        "reason",
    ),
    _seconds(
        "chorale_recovery_seconds",
        "Seconds from a failed attempt's end to the next one's first step.",
        _LONG_S,
    ),
    _seconds(
        "chorale_first_step_seconds",
        "Seconds from the placement of an attempt to its first step done.",
        _LONG_S,
        "model",
    ),
)
"""What ranks and supervisors tell their agent."""

RANK_GAUGES = (
    _slot("chorale_vram_allocated_bytes", "GPU memory that the rank's tensors take, by torch."),
    _slot("chorale_vram_reserved_bytes", "GPU memory that the rank's allocator holds, by torch."),
    _slot("chorale_vram_peak_bytes", "The most that the rank's tensors have taken since it began, by torch."),
    _slot("chorale_rank_resident_bytes", "Host memory of the rank's process (RSS), on GPUs and CPUs alike."),
    _slot("chorale_rank_resident_peak_bytes", "The most host memory that the rank's process has had."),
)
"""Of living ranks: they end with their process."""

DEVICE_GAUGES = (
    _slot("chorale_vram_used_bytes", "GPU memory in use by anybody, by the driver."),
    _slot("chorale_vram_total_bytes", "GPU memory that the device has, by the driver."),
    _slot("chorale_gpu_utilization_ratio", "Share of the last moment in which the GPU was busy."),
)
"""Asked of the driver at each scrape; not there without a GPU."""

FARM_GAUGES = (
    _farm("chorale_database_up", "1 when this agent could read the farm's database lately."),
    _farm("chorale_node_up", "1 for a node that is there, 0 for one that was lost in the last day.", "node"),
    _farm("chorale_slots", "Slots of the nodes that are there and take jobs.", "node"),
    _farm("chorale_slots_free", "Slots of those that no group holds.", "node"),
    _farm("chorale_queue_depth", "Jobs that wait.", "queue"),
    _farm("chorale_queue_running", "Jobs that are placed, rendered or published.", "queue"),
    _farm("chorale_queue_oldest_seconds", "Age of the job that has waited longest, 0 without one.", "queue"),
    _farm(
        "chorale_queue_overdue_seconds",
        "Seconds since a whole time window has passed over the job that has waited longest; else 0.",
        "queue",
    ),
    _farm(
        "chorale_queue_left_seconds",
        "Estimated seconds until the queue is empty; not there while nobody can tell.",
        "queue",
    ),
    _farm("chorale_queue_deadlines_missed", "Living jobs that will miss their deadline.", "queue"),
    _farm("chorale_jobs_ended", "Jobs that have ended and are not forgotten yet.", "queue", "outcome"),
)
"""Read from the database: all agents show the same, so take `max`, never `sum`, over them."""

BUILD = Series(
    name="chorale_build_info",
    kind="gauge",
    help="Always 1; its labels tell what runs.",
    labels=("node", "version", "python", "torch", "device"),
)


def every_series() -> Iterator[Series]:
    """All that a `/metrics` of ours may show, but for the agent's own process."""
    yield from chain(MEASURED, RANK_GAUGES, DEVICE_GAUGES, FARM_GAUGES, (BUILD,))


def names() -> frozenset[str]:
    """All names as Prometheus stores them; what rules and dashboards may ask for."""
    return frozenset(name for series in every_series() for name in series.exported())


KINDS = {series.name: series.kind for series in every_series()}
"""Of each series, by its name in the table."""
