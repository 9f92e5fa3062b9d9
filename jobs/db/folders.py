"""Folders of images in the farm's store: `DIGEST-NUMERICS`, or `DIGEST` alone from version 0.1.

Files of one folder all come from equal numerics (`render.numerics`), so attempts whose bits differ never
write to the same keys: nodes of two program versions, of two kinds of device, with other library versions.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, func, select

from jobs.db.tables import attempts, jobs

FINISHED_FOLDER = func.coalesce(jobs.c.folder, jobs.c.digest)
"""SQL: the folder of a finished job's image."""


def folder_name(digest: str, numerics: str) -> str:
    """The folder of an image that is rendered with these numerics (an identity, see `render.numerics`)."""
    return f"{digest}-{numerics}"


def digest_of(folder: str) -> str:
    """The digest of the image in a folder."""
    return folder.partition("-")[0]


def image_folder(connection: Connection, job: str) -> str:
    """The folder of a finished job's image; before that, the folder of the newest attempt."""
    row = connection.execute(select(jobs.c.digest, jobs.c.root, jobs.c.folder).where(jobs.c.id == job)).one()
    folders = [] if row.root is not None else attempted_folders(connection, job)
    return str(row.folder or (folders[0] if folders else row.digest))


def image_folders(connection: Connection, names: Sequence[str]) -> list[str]:
    """The folders of finished jobs' images, in the order of the jobs; the others are left out."""
    done = select(jobs.c.id, FINISHED_FOLDER.label("folder"))
    done = done.where(jobs.c.id.in_(names), jobs.c.root.is_not(None))
    found = {row.id: str(row.folder) for row in connection.execute(done)}
    return [found[name] for name in names if name in found]


def attempted_folders(connection: Connection, job: str) -> list[str]:
    """The folders that attempts at a job have used, newest first, each once."""
    statement = select(attempts.c.folder, jobs.c.digest).join(jobs, jobs.c.id == attempts.c.job)
    rows = connection.execute(statement.where(jobs.c.id == job).order_by(attempts.c.fence.desc()))
    return list(dict.fromkeys(row.folder or row.digest for row in rows))
