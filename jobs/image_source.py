"""Where a command finds an image: a folder, a bucket, or the id of a job of the farm."""

from __future__ import annotations

import re
from pathlib import Path

from infra.settings import Settings
from infra.store.base import Store
from infra.store.open import open_store
from jobs.errors import UnknownJob
from render.errors import BadInput

_JOB_ID = re.compile(r"[0-9a-f]{6,16}")


def image_url(source: str, settings: Settings) -> str:
    """The URL of an image that is given as a folder, a URL or a job's id (or the first characters of it).

    A folder of that name wins over a job. Raises `BadInput` for an id that no job has.
    """
    if not _JOB_ID.fullmatch(source) or Path(source).exists():
        return source
    # A folder needs no farm, and its libraries take longer to import than a small image to verify.
    from jobs.db.folders import image_folder
    from jobs.db.queries import find_job
    from jobs.farm import open_farm, open_images

    with open_farm(settings) as farm, farm.database.read() as connection:
        try:
            folder = image_folder(connection, find_job(connection, source))
        except UnknownJob as exc:
            problem = "is neither a folder nor the id of a job; chorale list shows the known ones"
            raise BadInput("image", source, problem) from exc
    return open_images(settings).within(folder).url()


def open_image(source: str, settings: Settings, *, patience_s: float = 0.0, field: str = "image") -> Store:
    """The store of an image, see `image_url`."""
    return open_store(image_url(source, settings), settings, patience_s=patience_s, field=field)
