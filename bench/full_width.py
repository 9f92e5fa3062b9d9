"""An SDXL folder of full width with random weights in bfloat16, rendered by two ranks: memory by process.

    python -m bench.full_width /tmp/folder --dtype float32 --quantize int8

Writes the folder, renders, puts the figures into bench/RESULTS.md and deletes the folder. The render is ended
when the machine has less than `--least-free` GiB left.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import click
import psutil

from bench.random_folder import write_sdxl
from bench.table import Row, as_markdown, write_section
from render.events import Event, RankStarted, StepDone
from render.launch.rank_group import RankGroup
from render.launch.request import Request
from render.models.model_paths import find_model_paths, model_info
from render.spec import DTYPES, QUANTIZATIONS, Spec

GIB = 2**30
LIMIT_GIB = 24
_SAMPLE_S = 0.5
TITLE = "SDXL at full width"


@dataclass
class Peaks:
    """The largest memory of each rank's process, in bytes, and of all of them together."""

    least_free: float
    rss: dict[int, int] = field(default_factory=dict)
    """Resident, with the mapped files that ranks share."""
    own: dict[int, int] = field(default_factory=dict)
    """Resident and shared with no other process or file (the kernel's RssAnon)."""
    together: int = 0
    """Proportional set sizes, summed: a page that two processes share counts once."""
    _sampled: float = 0.0

    def on_event(self, event: Event) -> None:
        if isinstance(event, RankStarted):
            self.rss[event.pid] = self.own[event.pid] = 0
        if isinstance(event, StepDone):
            click.echo(f"step {event.step} of {event.steps}: {event.seconds:.0f} s", err=True)

    def sample(self) -> bool:
        """Called several times a second by the group; stops nothing, but raises when memory runs out."""
        now = time.monotonic()
        if now - self._sampled < _SAMPLE_S:
            return False
        self._sampled = now
        if psutil.virtual_memory().available < self.least_free * GIB:
            raise click.ClickException(f"less than {self.least_free:g} GiB are free; the render was ended")
        together = 0
        for pid in self.rss:
            status = _fields(Path(f"/proc/{pid}/status"))
            self.rss[pid] = max(self.rss[pid], status.get("VmHWM", 0))
            self.own[pid] = max(self.own[pid], status.get("RssAnon", 0))
            together += _fields(Path(f"/proc/{pid}/smaps_rollup")).get("Pss", 0)
        self.together = max(self.together, together)
        return False


def _fields(file: Path) -> dict[str, int]:
    """The sizes in bytes that a file of /proc has in lines such as `VmHWM: 12 kB`."""
    try:
        lines = [line.split() for line in file.read_text().splitlines()]
    except OSError:
        return {}
    return {line[0].rstrip(":"): int(line[1]) * 1024 for line in lines if line[-1] == "kB"}


def measure(folder: Path, spec: Spec, ranks: int, least_free: float) -> list[Row]:
    """Render the spec, whose model is the folder, into a temporary one."""
    paths = find_model_paths(spec.model, None)
    peaks, group = Peaks(least_free), RankGroup(ranks)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="chorale-out-") as out:
        request = Request(spec=spec.to_dict(), folders=paths, info=model_info(paths), device="cpu", out=out)
        try:
            group.render(request, peaks.on_event, on_tick=peaks.sample)
        finally:
            group.close()
    weights = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    rows = [Row("weights on disk, GiB", weights / GIB, "")]
    for number, pid in enumerate(sorted(peaks.rss)):
        rows.append(
            Row(f"process {number}: peak resident, mapped files included, GiB", peaks.rss[pid] / GIB, "")
        )
        rows.append(Row(f"process {number}: peak of its own pages, GiB", peaks.own[pid] / GIB, ""))
    rows.append(Row("both together, shared pages once, GiB", peaks.together / GIB, f"<= {LIMIT_GIB}"))
    rows.append(Row("wall seconds, beside other work", time.monotonic() - started, ""))
    return rows


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--dtype", type=click.Choice(DTYPES), default="float32")
@click.option("--quantize", type=click.Choice(QUANTIZATIONS), default="none")
@click.option("--size", default=1024, help="Side of the image in pixels.")
@click.option("--least-free", default=3.0, help="GiB that have to stay available on the machine.")
def main(folder: Path, dtype: str, quantize: str, size: int, least_free: float) -> None:
    """See the module."""
    write_sdxl(folder)
    try:
        spec = Spec(
            prompt="a red vase on a wooden table",
            model=str(folder),
            width=size,
            height=size,
            steps=2,
            dtype=dtype,
            quantize=quantize,
        )
        rows = measure(folder, spec, 2, least_free)
    finally:
        shutil.rmtree(folder)
    command = f"python -m bench.full_width FOLDER --dtype {dtype} --quantize {quantize}"
    text = as_markdown(
        f"{TITLE}: {size}x{size}, 2 steps, 2 ranks, {dtype}, quantize {quantize}", command, rows
    )
    write_section(text.splitlines()[0].removeprefix("## "), text)
    click.echo(text)


if __name__ == "__main__":
    main()
