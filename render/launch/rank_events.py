"""The events by which a rank tells of its errors and of its checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from render.errors import BadInput, NoImage, RenderError, SinkError, exit_code
from render.events import CheckpointSaved, RankFailed

if TYPE_CHECKING:
    from render.denoise.checkpoint import SaveResult

LONGEST_TEXT = 8_000
"""Characters of an error that an event carries."""


def failure_event(exc: RenderError) -> RankFailed:
    """Tells of an error that ends a rank, or an image."""
    bad = (exc.field, str(exc.value), exc.fix) if isinstance(exc, BadInput) else None
    text, outage = str(exc)[:LONGEST_TEXT], isinstance(exc, SinkError)
    return RankFailed(
        code=exit_code(exc), text=text, outage=outage, bad_input=bad, permanent=isinstance(exc, NoImage)
    )


def checkpoint_event(result: SaveResult) -> CheckpointSaved:
    """Tells of an attempt to save a checkpoint."""
    return CheckpointSaved(
        stage=result.checkpoint.stage,
        step=result.checkpoint.canvas.step,
        bytes=result.bytes,
        seconds=result.seconds,
        error=None if result.error is None else str(result.error)[:LONGEST_TEXT],
    )
