"""Renditions that the farm makes: a task for each image and channel, from the moment that the image is done.

A batch asks for channels when it is submitted, or later. Each finished image of it becomes a row of the table
`renditions` and a follow-up, which a worker of the queue `renditions` does. The file goes into the farm's
store under a name of its own, whole or not at all, so that doing it twice makes the same file again (with
another signature, where files are signed).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, delete, exists, select, update

from infra.database import insert_or_change, now
from infra.settings import Settings
from jobs.db import follow_ups
from jobs.db.folders import FINISHED_FOLDER
from jobs.db.follow_ups import FollowUp
from jobs.db.tables import batches, entries, jobs, renditions
from jobs.farm import RENDITIONS, Farm, open_images
from jobs.renditions.batch import BatchImage, batch_images, rendition_of
from jobs.renditions.channel import CONTENT_TYPES, ENDINGS, Channel, find_channel
from jobs.renditions.check import check_rendition
from jobs.renditions.names import FIELDS, file_name
from jobs.renditions.signing import check_signer, open_signer
from render.errors import BadInput

RENDITION = "rendition"
"""Kind of the follow-up that makes one."""
_MOST = 200
"""Renditions that are begun in one round."""
_OPEN_S = 30 * 86_400.0
"""A batch whose jobs have not all been done for so long is not looked at any more."""
_NAME = re.compile(r"[\w-]{1,64}")
_WITHOUT_END = ("done", "cancelled")
"""States after which a job makes no image any more; a failed one may be retried."""


def wanted_channels(names: Iterable[str], *, files: bool, settings: Settings | None = None) -> dict[str, Any]:
    """The channels of these names, as JSON has them; raises `BadInput`.

    `files` allows the names of .yaml files, which are read on this machine. With `settings` that name a
    certificate, raises `BadSetting` where it cannot sign, before anything is asked for.
    """
    found: dict[str, Any] = {}
    for name in filter(None, (part.strip() for text in names for part in text.split(","))):
        if not files and not _NAME.fullmatch(name):
            raise BadInput("channel", name[:80], "is no channel; chorale export --channels lists them")
        channel = find_channel(name)
        if not _NAME.fullmatch(channel.name):
            fix = "is no name for files; use letters, digits, - and _ in the channel's file"
            raise BadInput("channel", channel.name[:80], fix)
        found[channel.name] = channel.model_dump(mode="json")
    if found and settings is not None:
        check_signer(settings)
    return found


def ask_for(connection: Connection, batch: str, wanted: Mapping[str, Any]) -> None:
    """Have the renditions of these channels made for a batch; raises `BadInput` for an unknown batch.

    Those of a channel whose rules have changed are made again.
    """
    row = connection.execute(select(batches).where(batches.c.id == batch).with_for_update()).one_or_none()
    if row is None:
        raise BadInput("batch", batch[:40], "is unknown; chorale batches shows the known ones")
    known: dict[str, Any] = row.channels or {}
    for name in (name for name in wanted if name in known and known[name] != wanted[name]):
        old = (renditions.c.batch == batch) & (renditions.c.channel == name)
        connection.execute(delete(renditions).where(old))
    values = {"channels": known | dict(wanted), "channels_open": True}
    connection.execute(update(batches).where(batches.c.id == batch).values(**values))


def note_due(farm: Farm) -> int:
    """Add a follow-up for each rendition that can be made now; returns how many. Raises `ServiceError`."""
    asked = select(batches).where(batches.c.channels_open.is_(True), batches.c.submitted.is_not(None))
    with farm.database.read() as connection:
        if connection.execute(asked.limit(1)).first() is None:
            return 0
    with farm.database.write() as connection:
        opened = list(connection.execute(asked.order_by(batches.c.id).with_for_update()))
        return sum(_note_batch(connection, batch) for batch in opened)


def make(farm: Farm, follow_up: FollowUp) -> str:
    """Make one rendition. Raises what may be tried again; what cannot be made is recorded with its reason."""
    wanted = follow_up.payload
    mine = _key_of(wanted["batch"], wanted["row"], wanted["channel"]) & (renditions.c.job == wanted["job"])
    with farm.database.read() as connection:
        statement = (
            select(renditions.c.file, batches.c.channels, FINISHED_FOLDER.label("folder"))
            .join(batches, batches.c.id == renditions.c.batch)
            .join(jobs, jobs.c.id == renditions.c.job)
            .where(mine)
        )
        found = connection.execute(statement).one_or_none()
    if found is None:
        return "another image has taken its place"
    channel = Channel.model_validate(found.channels[wanted["channel"]])
    try:
        values = _made(farm, found.folder, channel, store_key(wanted["batch"], channel.name, found.file))
    except BadInput as exc:
        # The next try would end the same.
        values = {"problem": str(exc)}
    except Exception as exc:
        _record(farm, mine, {"problem": f"{type(exc).__name__}: {exc}"[:500]})
        raise
    _record(farm, mine, values)
    return f"{found.file} for {channel.name}: {values.get('problem') or 'made'}"


def store_key(batch: str, channel: str, file: str) -> str:
    """Where the farm's store has a rendition."""
    return f"{RENDITIONS}/{batch}/{channel}/{file}"


def list_renditions(connection: Connection, batch: str, channel: str | None = None) -> list[dict[str, Any]]:
    """The renditions of a batch by channel and row: `made` is None until there is a file."""
    columns = [column for column in renditions.c if column.name != "batch"]
    rows = (
        select(*columns, entries.c.custom_id)
        .join(entries, (entries.c.batch == renditions.c.batch) & (entries.c.row == renditions.c.row))
        .where(renditions.c.batch == batch)
        .order_by(renditions.c.channel, renditions.c.row)
    )
    if channel is not None:
        rows = rows.where(renditions.c.channel == channel)
    return [dict(row._mapping) for row in connection.execute(rows)]


def _made(farm: Farm, folder: str, channel: Channel, key: str) -> dict[str, Any]:
    images = open_images(farm.settings, patience_s=farm.settings.store_patience_s)
    signer = open_signer(farm.settings)
    data, manifest = rendition_of(images.within(folder), channel.rendition, signer)
    results = check_rendition(data, channel.rules, (manifest.width, manifest.height))
    images.put(key, data, CONTENT_TYPES[channel.rendition.format])
    broken = [asdict(result) for result in results if not result.passes]
    return {"made": now(), "bytes": len(data), "broken": broken, "problem": None}


def _record(farm: Farm, mine: Any, values: Mapping[str, Any]) -> None:
    with farm.database.write() as connection:
        connection.execute(update(renditions).where(mine).values(**values))


def _note_batch(connection: Connection, batch: Any) -> int:
    """Begin what is due of one batch; it is left alone from then on if nothing more can come of it."""
    begun = sum(_note_channel(connection, batch.id, name, each) for name, each in batch.channels.items())
    moment = connection.execute(select(now())).scalar_one()
    going = (
        select(jobs.c.id)
        .join(entries, entries.c.job == jobs.c.id)
        .where(entries.c.batch == batch.id, jobs.c.state.not_in(_WITHOUT_END))
        .limit(1)
    )
    over = connection.execute(going).first() is None or batch.submitted < moment - _OPEN_S
    if over and not begun:
        mine = update(batches).where(batches.c.id == batch.id)
        connection.execute(mine.values(channels_open=False))
    return begun


def _note_channel(connection: Connection, batch: str, name: str, document: Mapping[str, Any]) -> int:
    there = exists().where(_key_of(batch, entries.c.row, name), renditions.c.job == entries.c.job)
    due = (
        select(entries.c.row)
        .join(jobs, jobs.c.id == entries.c.job)
        .where(entries.c.batch == batch, jobs.c.state == "done", ~there.correlate(entries))
        .order_by(entries.c.row)
        .limit(_MOST)
    )
    rows = set(connection.execute(due).scalars())
    if not rows:
        return 0
    channel = Channel.model_validate(document)
    version = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:8]
    names = file_names([image for image, _ in batch_images(connection, batch)], channel)
    for image, _ in batch_images(connection, batch):
        if image.row in rows:
            values = {"job": image.job, "file": names[image.row], "made": None, "bytes": None}
            values |= {"broken": None, "problem": None}
            row = insert_or_change(connection, renditions, values)
            connection.execute(row.values(batch=batch, row=image.row, channel=name, **values))
            id = f"{RENDITION}:{batch}:{name}:{version}:{image.row}:{image.job}"
            payload = {"batch": batch, "row": image.row, "channel": name, "job": image.job}
            follow_ups.add(connection, id, RENDITION, payload)
    return len(rows)


def file_names(images: Iterable[BatchImage], channel: Channel) -> dict[int, str]:
    """By row: the file's name, as the channel names it; rows that it does not tell apart get a number."""
    ending, taken = f".{ENDINGS[channel.rendition.format]}", set[str]()
    found: dict[int, str] = {}
    for image in images:
        values = {field: getattr(image, field) for field in FIELDS if field != "channel"}
        base = file_name(Path(channel.file_name).name, values | {"channel": channel.name})
        if base.casefold() in taken:
            base += f"-row{image.row}"
        taken.add(base.casefold())
        found[image.row] = base if base.lower().endswith(ending) else base + ending
    return found


def _key_of(batch: str, row: Any, channel: str) -> Any:
    return (renditions.c.batch == batch) & (renditions.c.row == row) & (renditions.c.channel == channel)
