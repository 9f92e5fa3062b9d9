"""A handle on the farm for the command line: its settings and its database, brought to today's schema."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from infra.database import Database
from infra.errors import BadSetting
from infra.settings import Settings, default_home
from jobs.state.schema import upgrade


@dataclass(frozen=True, kw_only=True)
class Farm:
    """What every verb of the farm works on."""

    settings: Settings
    database: Database
    url: str
    """The database's, for processes that we start."""


def images_folder(settings: Settings) -> Path:
    """Where finished images go, each into a folder named by its digest."""
    if not settings.store_url:
        return default_home() / "images"
    if not settings.store_url.startswith("file://"):
        raise BadSetting("store_url", settings.store_url, "is not file:///a/folder; S3 is not in yet")
    return Path(settings.store_url.removeprefix("file://"))


def logs_folder(settings: Settings) -> Path:
    """Where the logs of ended attempts are collected from all nodes."""
    return images_folder(settings) / "logs"


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
