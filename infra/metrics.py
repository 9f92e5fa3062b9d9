"""The series of a node's `/metrics`: names, kinds, labels and help texts. Pure data.

Base units only: seconds, bytes, ratios from 0 to 1. Labels are bounded: never a job, a prompt or a process.
Tests compare dashboards and rules with this table.
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
"""Died without an error, reported an error, lost with its node, a service unreachable, stopped."""

NODE_CHECKS = ("home", "temporary", "memory", "clock", "store", "gpu", "start")
"""What a node checks before it takes jobs; `start` fails when a supervisor could not be started."""

MEASURED = (
    _counter("chorale_images_total", "Finished images, counted on the node of rank 0.", "model"),
    _counter("chorale_pixels_total", "Pixels decoded by the slot's rank.", "slot", "model"),
    _counter(
        "chorale_steps_total",
        "Steps of the slot's rank; all ranks of a group count the same steps.",
        "slot",
        "model",
    ),
    _counter("chorale_model_calls_total", "Model calls (batches of windows).", "slot", "model"),
    _counter("chorale_model_seconds_total", "Seconds spent in model calls.", "slot", "model"),
    _counter("chorale_border_bytes_total", "Bytes of border latents sent to the other ranks.", "slot"),
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
        "Seconds from the start of a step's all-gather to its end; the model runs meanwhile.",
        _STEP_S,
        "slot",
    ),
    _seconds("chorale_checkpoint_seconds", "Seconds to store a checkpoint.", _REQUEST_S, "outcome"),
    _counter("chorale_checkpoint_bytes_total", "Bytes of stored checkpoints."),
    _counter("chorale_store_requests_total", "Requests to the object store.", "operation", "outcome"),
    _counter("chorale_store_bytes_total", "Bytes written to or read from the object store.", "operation"),
    _seconds("chorale_store_seconds", "Duration of a request to the object store.", _REQUEST_S, "operation"),
    _counter("chorale_group_starts_total", "Groups of ranks started; a warm group is not started again."),
    _counter(
        "chorale_group_restarts_total",
        "Attempts that ended without an image and have to be repeated.",
        "reason",
    ),
    _seconds(
        "chorale_recovery_seconds",
        "Seconds from the end of a failed attempt to the first step of the next.",
        _LONG_S,
    ),
    _seconds(
        "chorale_first_step_seconds",
        "Seconds from the placement of an attempt to the end of its first step.",
        _LONG_S,
        "model",
    ),
)
"""What ranks and supervisors report to their agent."""

RANK_GAUGES = (
    _slot("chorale_vram_allocated_bytes", "GPU memory allocated to the rank's tensors, as torch reports it."),
    _slot("chorale_vram_reserved_bytes", "GPU memory reserved by the rank's allocator, as torch reports it."),
    _slot("chorale_vram_peak_bytes", "Peak of the GPU memory allocated to the rank's tensors."),
    _slot("chorale_rank_resident_bytes", "Resident memory of the rank's process."),
    _slot("chorale_rank_resident_peak_bytes", "Peak of the resident memory of the rank's process."),
)
"""Of running ranks; a series ends with its process."""

DEVICE_GAUGES = (
    _slot("chorale_vram_used_bytes", "GPU memory in use by all processes, as the driver reports it."),
    _slot("chorale_vram_total_bytes", "GPU memory of the device, as the driver reports it."),
    _slot("chorale_gpu_utilization_ratio", "Share of the last sample period in which the GPU was busy."),
)
"""Read from the driver at each scrape; absent without a GPU."""

FARM_GAUGES = (
    _farm("chorale_database_up", "1 if this agent could read the farm's database recently."),
    _farm("chorale_node_up", "1 for a node that is up, 0 for one that was lost within the last day.", "node"),
    _farm(
        "chorale_node_unhealthy",
        "1 if a check of this node fails, so that it takes no jobs; 0 if it passes.",
        "node",
        "reason",
    ),
    _farm("chorale_slots", "Slots of nodes that are up, healthy and not draining.", "node"),
    _farm("chorale_slots_free", "Slots of those nodes that no group holds.", "node"),
    _farm("chorale_queue_open", "1 if the queue may start jobs now: not paused, its window open.", "queue"),
    _farm(
        "chorale_queue_slots_needed",
        "Slots that the queue's groups hold, and while it is open the least that its waiting jobs need.",
        "queue",
    ),
    _farm("chorale_queue_depth", "Queued jobs.", "queue"),
    _farm("chorale_queue_running", "Jobs in placing, rendering or publishing.", "queue"),
    _farm("chorale_queue_oldest_seconds", "Age of the oldest queued job, 0 without one.", "queue"),
    _farm(
        "chorale_queue_overdue_seconds",
        "Seconds since the oldest queued job has missed a whole time window, else 0.",
        "queue",
    ),
    _farm(
        "chorale_queue_left_seconds",
        "Estimated seconds until the queue is empty; absent while it cannot be estimated.",
        "queue",
    ),
    _farm(
        "chorale_queue_deadlines_missed",
        "Unfinished jobs that are estimated to miss their deadline.",
        "queue",
    ),
    _farm("chorale_jobs_ended", "Ended jobs in the database, by outcome.", "queue", "outcome"),
)
"""Read from the database. All agents export the same: aggregate with `max`, never with `sum`."""

BUILD = Series(
    name="chorale_build_info",
    kind="gauge",
    help="Always 1; its labels name the running versions.",
    labels=("node", "version", "python", "torch", "device"),
)


def every_series() -> Iterator[Series]:
    """All series that `/metrics` may export, except those of the agent's own process."""
    yield from chain(MEASURED, RANK_GAUGES, DEVICE_GAUGES, FARM_GAUGES, (BUILD,))


def names() -> frozenset[str]:
    """All names as Prometheus stores them: what rules and dashboards may use."""
    return frozenset(name for series in every_series() for name in series.exported())


KINDS = {series.name: series.kind for series in every_series()}
"""The kind of each series, by name."""
