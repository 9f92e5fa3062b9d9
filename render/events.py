"""What happens in a render, as frozen dataclasses: from the engine to observers, from ranks to their group.

Seconds are wall-clock. `phases` maps a phase's name (model, wait, fuse, decode, encode, upload, ...) to the
seconds that the sending rank spent in it. Stages and ranks count from 0, steps from 1.

Between processes an event travels as one JSON object: its fields, and its `kind`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import ClassVar


@dataclass(frozen=True, kw_only=True)
class Event:
    """Base class. `rank` is the global rank that sent the event; the sender fills it in.

    `image` counts from 0 the images of a request that has several (`render.launch.request`).
    """

    kind: ClassVar[str]
    rank: int = 0
    image: int = 0

    def to_json(self) -> str:
        """One JSON object with all fields and the `kind`."""
        return json.dumps({"kind": self.kind, **asdict(self)})


@dataclass(frozen=True, kw_only=True)
class RankStarted(Event):
    """A rank's process runs and takes signals; its model is not loaded yet."""

    kind: ClassVar[str] = "rank_started"
    pid: int


@dataclass(frozen=True, kw_only=True)
class EpochBegan(Event):
    """The group has formed anew, after the loss of a rank or with one more; its ranks go on rendering."""

    kind: ClassVar[str] = "epoch_began"
    epoch: int
    ranks: int
    """Ranks that render together from now on."""
    seconds: float
    """How long the sender has waited for the new group."""


@dataclass(frozen=True, kw_only=True)
class RankLeft(Event):
    """A rank has ended, and the others go on without it: it was told to leave, or it had been added to the
    group and has failed."""

    kind: ClassVar[str] = "rank_left"
    local_rank: int
    asked: bool
    """Whether it was told to."""
    text: str
    """What has ended it, where it cannot tell by itself."""


@dataclass(frozen=True, kw_only=True)
class NodeLost(Event):
    """A node of the group is gone with all its ranks; the others go on. The group's first node sends it."""

    kind: ClassVar[str] = "node_lost"
    node: int
    """Its number in the group."""


@dataclass(frozen=True, kw_only=True)
class FirstNodeLost(Event):
    """This node has lost the group's first node, and with it the store and who decides who renders together.
    Its ranks wait to be told of another first node, and end without one."""

    kind: ClassVar[str] = "first_node_lost"


@dataclass(frozen=True, kw_only=True)
class ModelLoaded(Event):
    """The ranks of a node have a model in memory that they did not have before."""

    kind: ClassVar[str] = "model_loaded"
    seconds: float


@dataclass(frozen=True, kw_only=True)
class StageStarted(Event):
    """A stage of `width` x `height` pixels begins, with `steps` denoising steps."""

    kind: ClassVar[str] = "stage_started"
    stage: int
    stages: int
    width: int
    height: int
    steps: int


@dataclass(frozen=True, kw_only=True)
class StepDone(Event):
    """A denoising step is done on all ranks; the times and counts are the sender's."""

    kind: ClassVar[str] = "step_done"
    stage: int
    step: int
    """Steps done in this stage, `steps` after the last one."""
    steps: int
    timestep: float
    """The model's own time of the step, as in diffusers' `scheduler.timesteps`."""
    seconds: float
    phases: Mapping[str, float]
    exchange_seconds: float
    """From the start of the step's collective to its result; the model works meanwhile. 0 on one rank."""
    model_calls: int
    border_bytes: int
    """Bytes of borders sent to the other ranks."""


@dataclass(frozen=True, kw_only=True)
class StepTimed(Event):
    """The times of a step on a rank that is not the first of its node; the first one sends `StepDone`."""

    kind: ClassVar[str] = "step_timed"
    stage: int
    step: int
    phases: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class CheckpointSaved(Event):
    """An attempt to store a checkpoint has ended; `error` is None when it is stored."""

    kind: ClassVar[str] = "checkpoint_saved"
    stage: int
    step: int
    bytes: int
    """0 when it could not be stored."""
    seconds: float
    error: str | None


@dataclass(frozen=True, kw_only=True)
class TilesWritten(Event):
    """A rank has decoded another of its blocks and stored its tiles."""

    kind: ClassVar[str] = "tiles_written"
    blocks_done: int
    blocks_total: int
    """Blocks of this rank alone."""
    pixels: int
    """Pixels of the image that were added."""
    phases: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class ImageDone(Event):
    """The image is published. `phases` are the seconds since the last `TilesWritten`."""

    kind: ClassVar[str] = "image_done"
    digest: str
    root: str
    seconds: float
    phases: Mapping[str, float] = field(default_factory=dict)
    request: int = 0
    """Number of the group's request; a group that has changed may send the event twice."""


@dataclass(frozen=True, kw_only=True)
class RankStopped(Event):
    """A rank has stopped after a step on request, with a checkpoint."""

    kind: ClassVar[str] = "rank_stopped"
    text: str


@dataclass(frozen=True, kw_only=True)
class RankFailed(Event):
    """A rank ends with an error that it can name."""

    kind: ClassVar[str] = "rank_failed"
    code: int
    """The documented exit code of the error."""
    text: str
    outage: bool
    """The sink was away; the job is not to blame."""
    bad_input: tuple[str, str, str] | None = None
    """(field, value, fix) of a `BadInput`."""
    permanent: bool = False
    """Every other try would end the same."""
    added: bool = False
    """The rank had been added to a group that renders, and the others go on without it."""


OnEvent = Callable[[Event], None]
"""Called in the thread that renders or that waits for the ranks; must not block."""
_CLASSES: dict[str, type[Event]] = {
    each.kind: each
    for each in (
        RankStarted,
        EpochBegan,
        RankLeft,
        NodeLost,
        FirstNodeLost,
        ModelLoaded,
        StageStarted,
        StepDone,
        StepTimed,
        CheckpointSaved,
        TilesWritten,
        ImageDone,
        RankStopped,
        RankFailed,
    )
}


def ignore_event(event: Event) -> None:
    """An `OnEvent` that does nothing."""


def from_json(text: str | bytes) -> Event:
    """The event that `to_json` has written. Raises `ValueError` for anything else."""
    values = json.loads(text)
    if not isinstance(values, dict):
        raise ValueError("an event is a JSON object")
    found = _CLASSES.get(values.pop("kind", ""))
    if found is None:
        raise ValueError("no event of a known kind")
    if isinstance(values.get("bad_input"), list):
        values["bad_input"] = tuple(values["bad_input"])
    try:
        return found(**values)
    except TypeError as exc:
        raise ValueError(f"no {found.kind} event: {exc}") from exc
