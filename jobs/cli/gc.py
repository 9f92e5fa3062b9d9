"""`chorale gc`: remove what no job needs any more."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import click
from sqlalchemy import select

from infra.settings import default_home
from jobs.cli.farm_options import farm_options, print_json
from jobs.farm import Farm, images_folder, logs_folder
from jobs.state.machine import ENDED
from jobs.state.tables import jobs
from render.picture.manifest import KEY


@dataclass(frozen=True)
class _Litter:
    path: Path
    why: str
    size: int
    changed: float


@click.command(epilog="Examples: chorale gc; chorale gc --older-than 7 --yes")
@click.option(
    "--older-than", type=click.FloatRange(0), default=7.0, show_default=True, help="Days untouched."
)
@click.option("--yes", is_flag=True, help="Remove it; without this, only tell.")
@farm_options
def gc(farm: Farm, as_json: bool, older_than: float, yes: bool) -> None:
    """Find old logs, and unfinished work of images that are finished or whose jobs have ended.

    Finished images are never touched, nor is the work of a job that may still go on.
    """
    before = time.time() - older_than * 86_400
    found = [litter for litter in [*_work(farm), *_logs(farm)] if litter.changed < before]
    total = sum(litter.size for litter in found)
    for litter in found:
        if not as_json:
            click.echo(f"{litter.size / 1e6:9.2f} MB  {litter.path}  ({litter.why})")
        if yes:
            if litter.path.is_dir():
                shutil.rmtree(litter.path, ignore_errors=True)
            else:
                litter.path.unlink(missing_ok=True)
    if as_json:
        print_json({"removed": yes, "bytes": total, "paths": [str(litter.path) for litter in found]})
    elif not found:
        click.echo("there is nothing to remove")
    else:
        verb = "removed" if yes else "would be removed; add --yes to do it"
        click.echo(f"{len(found)} things, {total / 1e6:.2f} MB, {verb}")


def _work(farm: Farm) -> list[_Litter]:
    with farm.database.read() as connection:
        living = set(connection.execute(select(jobs.c.digest).where(jobs.c.state.not_in(ENDED))).scalars())
    found: list[_Litter] = []
    for work in images_folder(farm.settings).glob("*/work"):
        if (work.parent / KEY).exists():
            found += _litter(work, "its image is finished")
        elif work.parent.name not in living:
            found += _litter(work, "its job has ended")
    return found


def _logs(farm: Farm) -> list[_Litter]:
    with farm.database.read() as connection:
        living = set(connection.execute(select(jobs.c.id).where(jobs.c.state.not_in(ENDED))).scalars())
    files = [*(default_home() / "logs").glob("*-*-*.log"), *logs_folder(farm.settings).glob("*-*-*.log")]
    return [
        litter
        for path in files
        if path.name.partition("-")[0] not in living
        for litter in _litter(path, "an old log")
    ]


def _litter(path: Path, why: str) -> list[_Litter]:
    """One, or none where a render has just removed it."""
    try:
        files = [each for each in path.rglob("*") if each.is_file()] if path.is_dir() else [path]
        return [_Litter(path, why, sum(each.stat().st_size for each in files), path.stat().st_mtime)]
    except FileNotFoundError:
        return []
