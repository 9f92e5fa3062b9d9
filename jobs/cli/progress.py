"""Progress of a render on a terminal; plain lines where there is none."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class RenderProgress:
    """Turns the ranks' news into a bar per stage and one for the tiles. A context manager that is called."""

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

    def __call__(self, news: dict[str, Any]) -> None:
        handler = getattr(self, f"_on_{news['kind']}", None)
        if handler is not None:
            handler(news)

    def _on_stage(self, news: dict[str, Any]) -> None:
        self._progress.update(self._waiting, visible=False)
        name = f"stage {news['stage'] + 1}/{news['stages']} {news['width']}x{news['height']}"
        self._stage = self._progress.add_task(name, total=news["steps"], rate="")
        self._say(f"{name}: {news['steps']} steps")

    def _on_step(self, news: dict[str, Any]) -> None:
        if self._stage is not None:
            rate = f"{news['seconds']:.2f} s/step"
            self._progress.update(self._stage, completed=news["step"], rate=rate)

    def _on_tiles(self, news: dict[str, Any]) -> None:
        self._blocks[news["rank"]] = news["done"], news["total"]
        done, total = (sum(pair[part] for pair in self._blocks.values()) for part in (0, 1))
        if self._tiles is None:
            self._tiles = self._progress.add_task("decoding and tiling", total=total, rate="")
            self._say("decoding and tiling")
        self._progress.update(self._tiles, completed=done, total=total)

    def _say(self, line: str) -> None:
        if self._plain:
            print(line, file=sys.stderr, flush=True)
