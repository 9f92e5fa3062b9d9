"""Opens a store by its URL and the settings."""

from __future__ import annotations

import os
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

_FEW_TRIES, _MANY_TRIES = 2, 5
"""Tries of boto3 itself: where an answer is wanted at once, and where work would be lost."""


_LONGEST_NAME, _LONGEST_PATH = 255, 3800
"""Bytes; a path leaves some for the keys below it."""


def open_store(
    url: str,
    settings: Settings,
    *,
    patience_s: float = 0.0,
    observe: Observer | None = None,
    field: str = "store_url",
) -> Store:
    """The store of `s3://bucket/prefix`, `file:///folder` or a folder's path; no request is made yet.

    Temporary errors are retried for `patience_s` seconds. `observe` is called after every call. Raises
    `BadSetting`, which names the `field` that the URL is from.
    """
    store = _backend(url, settings, field, _MANY_TRIES if patience_s else _FEW_TRIES)
    if observe is not None:
        store = InstrumentedStore(store, observe)
    return RetryingStore(store, patience_s) if patience_s else store


def check_reach(store: Store) -> None:
    """Make one request; raises the store's error when it cannot be used."""
    with suppress(StoreMissing):
        store.get("chorale-check/nothing")


def _backend(url: str, settings: Settings, field: str, tries: int) -> Store:
    scheme, separator, rest = url.partition("://")
    if not separator:
        if re.match(r"(s3|file):", url):
            raise BadSetting(
                field, url, "has no slashes after the scheme; use s3://bucket/prefix or file:///folder"
            )
        return _folder(url, url, field)
    if scheme == "file":
        if not rest.startswith("/"):
            raise BadSetting(field, url, "is not an absolute path; use file:///folder")
        return _folder(unquote(rest), url, field)
    if scheme == "s3":
        from infra.store.s3 import S3Store
        from infra.store.s3_client import S3Options, split_s3_url

        bucket, prefix = split_s3_url(url, field)
        return S3Store(bucket, prefix, S3Options.from_settings(settings, tries))
    raise BadSetting(
        field, redact_url(url), "has an unknown scheme; use s3://bucket/prefix or file:///folder"
    )


def _folder(path: str, url: str, field: str) -> LocalStore:
    shown = url if len(url) <= 80 else f"{url[:77]}..."
    if "\0" in path:
        raise BadSetting(field, shown.replace("\0", "?"), "contains a null byte; give the path of a folder")
    if len(os.fsencode(path)) > _LONGEST_PATH or any(
        len(os.fsencode(part)) > _LONGEST_NAME for part in path.split("/")
    ):
        raise BadSetting(field, shown, "has a name that is too long for a folder; use a shorter one")
    return LocalStore(Path(path))
