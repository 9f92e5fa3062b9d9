"""Progress of a render on a terminal; plain lines where there is none."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from jobs.cli.terminal import print_line
from render.events import Event, StageStarted, StepDone, TilesWritten


class RenderProgress:
    """Turns the ranks' events into a bar per stage and one for the tiles. A callable context manager."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._plain = not console.is_terminal
        self._progress = Progress(
            TextColumn("{task.description:<22}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            disable=self._plain,
        )
        self._stage: TaskID | None = None
        self._tiles: TaskID | None = None
        self._blocks: dict[int, tuple[int, int]] = {}

    def __enter__(self) -> RenderProgress:
        self._progress.__enter__()
        self._waiting = self._progress.add_task("loading the model", total=None, rate="")
        return self

    def __exit__(self, *error: Any) -> None:
        self._progress.__exit__(*error)

    def __call__(self, event: Event) -> None:
        match event:
            case StageStarted():
                self._begin_stage(event)
            case StepDone() if self._stage is not None:
                rate = f"{event.seconds:.2f} s/step"
                self._progress.update(self._stage, completed=event.step, rate=rate)
            case TilesWritten():
                self._update_tiles(event)

    def _begin_stage(self, event: StageStarted) -> None:
        self._progress.update(self._waiting, visible=False)
        name = f"stage {event.stage + 1}/{event.stages} {event.width}x{event.height}"
        self._stage = self._progress.add_task(name, total=event.steps, rate="")
        self._print(f"{name}: {event.steps} steps")

    def _update_tiles(self, event: TilesWritten) -> None:
        self._blocks[event.rank] = event.blocks_done, event.blocks_total
        done, total = (sum(pair[part] for pair in self._blocks.values()) for part in (0, 1))
        if self._tiles is None:
            self._tiles = self._progress.add_task("decoding and tiling", total=total, rate="")
            self._print("decoding and tiling")
        self._progress.update(self._tiles, completed=done, total=total)

    def _print(self, line: str) -> None:
        if self._plain:
            print_line(line, error=True)
