"""One way to a store: by its URL and the settings."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote

from infra.errors import BadSetting, StoreMissing
from infra.settings import Settings, redact_url
from infra.store.base import Store
from infra.store.instrumented import InstrumentedStore, Observer
from infra.store.local import LocalStore
from infra.store.retrying import RetryingStore

_HASTY_TRIES, _PATIENT_TRIES = 2, 5
"""Tries of S3's client by itself, where an answer is wanted at once, and where work would be lost."""


def open_store(
    url: str,
    settings: Settings,
    *,
    patience_s: float = 0.0,
    observe: Observer | None = None,
    field: str = "store_url",
) -> Store:
    """The store of `s3://bucket/prefix`, `file:///folder` or a folder's path; nothing is asked of it yet.

    With patience, an outage is waited out for so long. `observe` hears of every call. Raises `BadSetting`,
    which names the `field` that the URL is from.
    """
    store = _backend(url, settings, field, _PATIENT_TRIES if patience_s else _HASTY_TRIES)
    if observe is not None:
        store = InstrumentedStore(store, observe)
    return RetryingStore(store, patience_s) if patience_s else store


def check_reach(store: Store) -> None:
    """Ask the store for something; raises its error when it cannot be used at all."""
    with suppress(StoreMissing):
        store.get("chorale-check/nothing")


def _backend(url: str, settings: Settings, field: str, tries: int) -> Store:
    scheme, there, rest = url.partition("://")
    if not there:
        if re.match(r"(s3|file):", url):
            raise BadSetting(field, url, "lacks the slashes; use s3://bucket/prefix or file:///folder")
        return LocalStore(Path(url))
    if scheme == "file":
        if not rest.startswith("/"):
            raise BadSetting(field, url, "is not file:///a/folder")
        return LocalStore(Path(unquote(rest)))
    if scheme == "s3":
        from infra.store.s3 import S3Store
        from infra.store.s3_client import S3Options, split_s3_url

        bucket, prefix = split_s3_url(url, field)
        return S3Store(bucket, prefix, S3Options.from_settings(settings, tries))
    raise BadSetting(field, redact_url(url), "is of no known store; use s3://bucket/prefix or file:///folder")
