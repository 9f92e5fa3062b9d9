"""The farm as commands use it: settings, and a database upgraded to the current schema."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial

from infra.database import Database
from infra.database_url import sqlite_url
from infra.settings import Settings, default_home
from infra.store.base import Store
from infra.store.instrumented import Observer
from infra.store.open import open_store
from jobs.db.schema import upgrade
from jobs.models.resolver import FarmModels
from render.models.known_names import resolving_names


@dataclass(frozen=True, kw_only=True)
class Farm:
    """Settings and database of a farm."""

    settings: Settings
    database: Database
    url: str = field(repr=False)
    """URL of the database, for child processes."""


RENDITIONS = "renditions"
"""Folder of the farm's store that holds the files which it has made for channels, by batch and channel."""
LOGS = "logs"
"""Folder of the farm's store that collects the logs of ended attempts from all nodes."""


def open_images(settings: Settings, *, patience_s: float = 0.0, observe: Observer | None = None) -> Store:
    """The farm's store: a folder for each image, `LOGS` and the inputs.

    Raises `BadSetting`. Sends no request to the store yet.
    """
    url = settings.store_url or str(default_home() / "images")
    return open_store(url, settings, patience_s=patience_s, observe=observe)


def restore_embedded(farm: Farm) -> None:
    """Make the embedded database again if its folder was deleted. Leaves every other database alone.

    Raises `OSError`, `ServiceError`.
    """
    if not is_embedded(farm):
        return
    default_home().mkdir(parents=True, exist_ok=True)
    upgrade(farm.database)


def is_embedded(farm: Farm) -> bool:
    """Whether the farm's database is the embedded one of this user's home."""
    return farm.url == _embedded_url()


def _embedded_url() -> str:
    return sqlite_url(default_home() / "farm.db")


@contextmanager
def open_farm(
    settings: Settings, *, renders: bool = False, longest_statement_s: float | None = None
) -> Iterator[Farm]:
    """Open the farm that the settings name; without a database URL, open or create the embedded one.

    A statement that takes longer than `longest_statement_s` is stopped, see `infra.database.Database`;
    not those of migrations.
    While it is open, models are found by the names that the farm knows (`jobs.models`): whole ones in a
    process that `renders`, else what is needed to plan.
    """
    url = settings.database_url.get_secret_value()
    if not url:
        default_home().mkdir(parents=True, exist_ok=True)
        url = _embedded_url()
    if longest_statement_s is not None:
        # Changing a large table takes longer than a query of a board may.
        with closing(Database(url)) as unlimited:
            upgrade(unlimited)
    database = Database(url, longest_statement_s=longest_statement_s)
    try:
        upgrade(database)
        patience_s = settings.store_patience_s if renders else 0.0
        names = FarmModels(settings, partial(open_images, settings, patience_s=patience_s), renders)
        with resolving_names(names):
            yield Farm(settings=settings, database=database, url=url)
    finally:
        database.close()
