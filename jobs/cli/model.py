"""`chorale model`: the models that a farm knows by name."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from sqlalchemy import Connection, Text, cast, func, select

from infra.settings import Settings
from infra.store.open import open_store
from jobs.cli.farm_options import farm_options, this_user
from jobs.cli.help import CommandGroup, examples
from jobs.cli.terminal import print_json, print_line, print_table
from jobs.db.audit import record
from jobs.db.leases import lock_inputs
from jobs.db.submission import submissions_in_progress
from jobs.db.tables import jobs
from jobs.errors import FAILED
from jobs.farm import Farm, open_images
from jobs.formatting import age, plural, size
from jobs.models.catalog import ModelCatalog, StoredModel, check_name
from render.errors import BadInput, ModelNotUsable
from render.models.folder import resolve_model
from render.models.model_paths import resolve_base

_MAY_RUN = jobs.c.state.not_in(("done", "cancelled"))
"""A failed job may be retried."""
_READ = 64 * 2**20
"""Bytes that are read from a store at once."""


@click.group(
    cls=CommandGroup,
    epilog=examples(
        "chorale model add sdxl models/stable-diffusion-xl-base-1.0",
        "chorale model list",
        "chorale model verify sdxl",
    ),
)
def model() -> None:
    """Give models names that every node of the farm understands.

    A model's files are stored once, in the farm's store. A node fetches a model when its first job needs it,
    into a cache in its home of CHORALE_MODEL_CACHE_GIB at most, and deletes those that were not used for
    longest. `chorale submit --model NAME` uses one; a job keeps the model that the name stood for when it was
    submitted.
    """


@model.command(
    epilog=examples(
        "chorale model add sdxl models/stable-diffusion-xl-base-1.0",
        "chorale model add turbo Tongyi-MAI/Z-Image-Turbo",
        "chorale model add brand s3://studio/models/brand",
        "chorale model add flux flux1-dev-fp8.safetensors --base models/flux",
    )
)
@click.argument("name")
@click.argument("source")
@click.option("--base", default=None, help="Folder in diffusers' format that completes a single file.")
@click.option("--replace", is_flag=True, help="Give a name that is taken to this model.")
@farm_options
def add(farm: Farm, as_json: bool, name: str, source: str, base: str | None, replace: bool) -> None:
    """Store the model SOURCE as NAME.

    SOURCE is a folder, a .safetensors or .gguf file, a hub id, or the URL of a folder in a store.
    """
    check_name(name)
    with _on_this_machine(source, farm.settings) as path:
        completed = None if base is None else _base_of(path, base)
        catalog = ModelCatalog(open_images(farm.settings))
        added = catalog.add(name, path, source, this_user(), replace, completed)
    with farm.database.write() as connection:
        record(connection, this_user(), "add model", f"model {name}", digest=added.digest, source=source)
    if as_json:
        print_json(_document(added))
    else:
        print_line(
            f"{added.pointed_name}: {added.family}, {plural(len(added.files), 'file')}, {size(added.bytes)}"
        )


@model.command(name="list", epilog=examples("chorale model list"))
@farm_options
def list_command(farm: Farm, as_json: bool) -> None:
    """List the models that the farm knows."""
    found = ModelCatalog(open_images(farm.settings)).models()
    if as_json:
        print_json({"models": [_document(each) for each in found]})
        return
    rows = [
        (each.name, each.family, size(each.bytes), each.digest[:16], age(each.added), each.source)
        for each in found
    ]
    print_table("models", ("model", "family", "size", "digest", "added", "source"), rows)


@model.command(epilog=examples("chorale model verify sdxl", "chorale model verify"))
@click.argument("name", required=False)
@farm_options
@click.pass_context
def verify(context: click.Context, farm: Farm, as_json: bool, name: str | None) -> None:
    """Read the files of NAME, or of all models, in the farm's store and compare their digests.

    Exit code 3 when one is damaged or missing.
    """
    catalog = ModelCatalog(open_images(farm.settings))
    found = catalog.models() if name is None else [_known(catalog, name)]
    problems = {each.name: catalog.verify(each) for each in found}
    if as_json:
        models = [{"name": each, "whole": not told, "problems": told} for each, told in problems.items()]
        print_json({"models": models})
    else:
        for each, told in problems.items():
            for line in told or ["whole"]:
                print_line(f"{each}: {line}")
    if any(problems.values()):
        context.exit(FAILED)


@model.command(epilog=examples("chorale model remove sdxl"))
@click.argument("name")
@farm_options
def remove(farm: Farm, as_json: bool, name: str) -> None:
    """Remove a model's name, and from the store the files that no other model has.

    Refused while an unfinished job needs it. Nodes delete their copies when they need the room.
    """
    catalog = ModelCatalog(open_images(farm.settings))
    found, stored = _known(catalog, name), catalog.models()
    with farm.database.write() as connection:
        # A batch that began to be stored before this is seen here; one that begins later does not
        # find the model.
        lock_inputs(connection)
        _check_unneeded(connection, found)
        record(connection, this_user(), "remove model", f"model {name}", digest=found.digest)
        catalog.forget(found, stored)
    freed = catalog.delete_files(found)
    if as_json:
        print_json({"name": name, "digest": found.digest, "bytes": freed})
    else:
        print_line(f"Removed {name}; {size(freed)} freed in the store")


def _base_of(path: Path, base: str) -> Path:
    if not path.is_file():
        fix = "completes a single file, and the model is a folder; leave it out"
        raise ModelNotUsable("base", base, fix)
    return resolve_base(base)


def _check_unneeded(connection: Connection, found: StoredModel) -> None:
    """Raise `BadInput` where a job may still need a model, or one is being submitted."""
    needed = cast(jobs.c.spec, Text).contains(f"@{found.digest[:16]}")
    waiting = connection.execute(select(func.count()).select_from(jobs).where(_MAY_RUN, needed)).scalar_one()
    if waiting:
        fix = f"is needed by {plural(waiting, 'unfinished job')}; wait for them, or cancel them"
        raise BadInput("name", found.name, fix)
    if submissions_in_progress(connection):
        fix = (
            "may be needed by a batch that is being submitted; try again when it is queued (an interrupted "
            "one counts for a day)"
        )
        raise BadInput("name", found.name, fix)


def _known(catalog: ModelCatalog, name: str) -> StoredModel:
    found = catalog.find(name)
    if found is None:
        known = ", ".join(each.name for each in catalog.models()[:10])
        fix = (
            f"is no model of this farm; use one of {known}"
            if known
            else "is no model of this farm, which has none"
        )
        raise BadInput("name", name[:80], fix)
    return found


def _document(found: StoredModel) -> dict[str, Any]:
    return asdict(found) | {"bytes": found.bytes, "files": len(found.files)}


@contextmanager
def _on_this_machine(source: str, settings: Settings) -> Iterator[Path]:
    """A source's path; of a folder in a store a copy, for as long as it is needed."""
    scheme, is_url, _ = source.partition("://")
    if not is_url or scheme not in ("s3", "file"):
        yield resolve_model(source)
        return
    store = open_store(source, settings, field="source")
    with tempfile.TemporaryDirectory(prefix="chorale-model-") as name:
        for entry in store.entries():
            path = Path(name) / entry.key
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as stream:
                for start in range(0, entry.size, _READ):
                    stream.write(store.get_range(entry.key, start, _READ))
        yield Path(name)
