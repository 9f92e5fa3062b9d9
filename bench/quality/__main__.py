"""`make bench-quality`: renders prompts in several ways, measures them, and writes bench/RESULTS.md.

    make bench-quality ARGS="--prompts 100 --sizes 2,4,8"
    make bench-quality ARGS="--prompts 100 --sizes 2 --rows 'cascade, overlap; plain tiling' --minutes 60"
    make bench-quality ARGS="--tables"

Every picture is measured once and kept by its spec's digest, which holds the weights' too: stop it whenever
you like, start it again, and it goes on; new weights begin anew. Two processes may share the work, --part 1/2
and --part 2/2; then --tables writes what both have measured.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import torch

from bench.quality.pictures import CPU, Cache
from bench.quality.rows import NATIVE_ROW, Prompt, Way, known_ways, prompts
from bench.quality.tables import Eyes, size_lines, write_sheet
from bench.table import as_markdown, write_section
from render.builtin.data import NATIVE
from render.errors import BadInput
from render.models import load_adapter
from render.models.folder import read_model_info, resolve_model

SIZES = (2, 4, 8)
WANTED = (
    "Wanted, on 100 prompts a row: one subject and all three at least 95 %, the latter at most two points "
    "under native size; detail (energy above the native size's Nyquist limit over that of studio photographs "
    "of the same prompts) 0.75 to 1.25; seam ratio at most 1.05, worst at most 1.10; colours less than a "
    "grey level apart; cost (latents evaluated over one pass of the full size without overlaps) at most 1.6."
)
Task = tuple[Prompt, Way, int]
_NATIVE = Way(name=NATIVE_ROW)


@click.command()
@click.option("--prompts", "total", default=100, show_default=True, help="How many prompts.")
@click.option("--sizes", default="2,4,8", show_default=True, help="Times the native side, with commas.")
@click.option("--rows", default=None, help="Names of rows, with semicolons. [all that this version has]")
@click.option("--add", multiple=True, help='One more row, "NAME: field=value, field=value".')
@click.option("--model", default="builtin", show_default=True, help="builtin, or a folder of its kind.")
@click.option("--steps", default=25, show_default=True, help="Denoising steps.")
@click.option("--minutes", type=float, default=None, help="Stop rendering after so long, and write.")
@click.option("--part", default="1/1", show_default=True, help="I/N: every N-th picture, for N processes.")
@click.option("--tables", is_flag=True, help="Render nothing; write what is there.")
@click.option("--cache", type=click.Path(path_type=Path), default=Path("out/quality"), show_default=True)
def main(
    total: int,
    sizes: str,
    rows: str | None,
    add: tuple[str, ...],
    model: str,
    steps: int,
    minutes: float | None,
    part: str,
    tables: bool,
    cache: Path,
) -> None:
    """Measure quality, and write the tables of whatever has been measured so far."""
    torch.set_num_threads(1)
    try:
        chosen, wanted = _chosen(rows, add), _sizes(sizes)
        first, parts = _part(part)
        folder = resolve_model(model)
        adapter = load_adapter(folder, CPU, "float32", read_model_info(folder))
    except BadInput as exc:
        click.echo(f"bench-quality: {exc}", err=True)
        sys.exit(2)
    kept, asked = Cache(folder=cache, adapter=adapter, steps=steps), prompts(total)
    if not tables:
        _measure_all(kept, list(_tasks(asked, chosen, wanted))[first - 1 :: parts], minutes)
    if tables or parts == 1:
        _write(kept, chosen, asked, wanted)


def _tasks(asked: Sequence[Prompt], chosen: Sequence[Way], wanted: Sequence[int]) -> Iterator[Task]:
    """Prompt by prompt and size by size, so that whenever it is stopped all rows have about the same N."""
    for prompt in asked:
        yield prompt, _NATIVE, 1
        for times in wanted:
            yield from ((prompt, way, times) for way in chosen)


def _measure_all(kept: Cache, tasks: Sequence[Task], minutes: float | None) -> None:
    missing = [task for task in tasks if kept.known(*task) is None]
    click.echo(f"{len(tasks)} pictures, {len(tasks) - len(missing)} of them known", err=True)
    started = time.monotonic()
    for number, (prompt, way, times) in enumerate(missing, start=1):
        spent = time.monotonic() - started
        if minutes is not None and spent > minutes * 60:
            click.echo(f"stopped after {minutes:g} minutes, {len(missing) - number + 1} to go", err=True)
            return
        at = time.monotonic()
        kept.measure(prompt, way, times)
        seconds = time.monotonic() - at
        text = f"{number}/{len(missing)}  {seconds:6.1f} s  {times}x  {way.name}: {prompt.text}"
        click.echo(text, err=True)


def _write(kept: Cache, chosen: Sequence[Way], asked: Sequence[Prompt], wanted: Sequence[int]) -> None:
    eyes = Eyes.open()
    trust = eyes.check()
    words = shlex.join(sys.argv[1:])
    for times in wanted:
        lines = size_lines(kept, chosen, _NATIVE, asked, times, eyes)
        side = NATIVE * times
        title = f"Quality at {times} times the native side ({side}x{side})"
        sheet = write_sheet(kept, chosen, asked, times)
        notes = [f"{kept.steps} steps, weights {kept.adapter.info.digest[:12]}. {trust} {WANTED}", ""]
        link = [] if sheet is None else ["", f"![The first of each row](quality/sheets/{sheet.name})"]
        text = as_markdown(title, f"make bench-quality ARGS={words!r}", [*notes, *lines, *link])
        write_section(title, text)
        click.echo(text)


def _chosen(rows: str | None, add: Sequence[str]) -> list[Way]:
    ways = known_ways(add)
    if rows is None:
        return list(ways.values())
    names = [name.strip() for name in rows.split(";")]
    for name in names:
        if name not in ways:
            raise BadInput("rows", name, f"is unknown; use {'; '.join(ways)}")
    return [ways[name] for name in names] + [ways[name] for name in list(ways)[-len(add) :] if add]


def _sizes(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip() in {str(size) for size in SIZES} for part in parts):
        raise BadInput("sizes", text, "is not some of 2, 4 and 8 with commas")
    return sorted({int(part) for part in parts})


def _part(text: str) -> tuple[int, int]:
    number, slash, parts = text.partition("/")
    if not (slash and number.isdigit() and parts.isdigit() and 1 <= int(number) <= int(parts)):
        raise BadInput("part", text, "is not I/N, such as 1/2")
    return int(number), int(parts)


if __name__ == "__main__":
    main()
