"""A handle on the farm for the command line: its settings and its database, brought to today's schema."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from infra.database import Database
from infra.settings import Settings, default_home
from infra.store.base import Store
from infra.store.instrumented import Observer
from infra.store.open import open_store
from jobs.db.schema import upgrade


@dataclass(frozen=True, kw_only=True)
class Farm:
    """What every verb of the farm works on."""

    settings: Settings
    database: Database
    url: str
    """The database's, for processes that we start."""


LOGS = "logs"
"""Folder of the farm's store where the logs of ended attempts are collected from all nodes."""


def open_images(settings: Settings, *, patience_s: float = 0.0, observe: Observer | None = None) -> Store:
    """The farm's store: finished images, each in a folder named by its digest, and `LOGS`.

    Raises `BadSetting`; nothing is asked of the store yet.
    """
    url = settings.store_url or str(default_home() / "images")
    return open_store(url, settings, patience_s=patience_s, observe=observe)


@contextmanager
def open_farm(settings: Settings) -> Iterator[Farm]:
    """The farm that the settings name; the embedded one is made when it is not there."""
    url = settings.database_url
    if not url:
        home = default_home()
        home.mkdir(parents=True, exist_ok=True)
        url = f"sqlite:///{home / 'farm.db'}"
    database = Database(url)
    try:
        upgrade(database)
        yield Farm(settings=settings, database=database, url=url)
    finally:
        database.close()
