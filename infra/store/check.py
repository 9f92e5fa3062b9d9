"""What works in a store, tried out; and how a new bucket is made ready."""

from __future__ import annotations

import os
import ssl
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError

from infra.errors import StoreError, StorePermanent
from infra.store.base import Store
from infra.store.open import check_reach
from infra.store.s3 import S3Store
from infra.store.s3_errors import translated

_FOLDER = "chorale-check"
_PRESIGN_S = 60
_TIMEOUT_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was tried. The farm cannot do without `needed` ones."""

    name: str
    works: bool
    detail: str
    needed: bool = True


def check_store(store: Store) -> list[Finding]:
    """Try out what a farm does with a store, in a folder of its own, and remove it again.

    Raises the store's error when it cannot be used at all.
    """
    check_reach(store)
    folder = f"{_FOLDER}/{uuid.uuid4().hex}"
    place = store.within(folder)
    findings = [
        _required("writes", lambda: place.put("file", b"0123456789", "text/plain")),
        _required("reads", lambda: _expect(place.get("file"), b"0123456789")),
        _required("reads a part", lambda: _expect(place.get_range("file", 2, 3), b"234")),
        _required("tells sizes", lambda: _expect((place.size("file"), place.size("none")), (10, None))),
        _required("lists", lambda: _expect([entry.key for entry in place.entries()], ["file"])),
        _conditional_writes(place),
        _required("deletes", lambda: _deletes(place)),
    ]
    if isinstance(store, S3Store):
        findings += [_presigned(place), _cors(store)]
    with suppress(StoreError):
        for entry in list(place.entries()):
            place.delete(entry.key)
        # The folders of a local store go with the last key in them.
        store.delete(f"{folder}/nothing")
    return findings


def make_bucket(store: S3Store, origin: str) -> list[Finding]:
    """Create the bucket if it does not exist, allow pages of `origin` to read it (CORS), and have the store
    remove aborted uploads. Raises the store's error when the bucket cannot be created."""
    made = _make(store)
    rule = {"AllowedMethods": ["GET", "HEAD"], "AllowedOrigins": [origin], "AllowedHeaders": ["*"]}
    abort = {
        "ID": "chorale-aborted-uploads",
        "Status": "Enabled",
        "Filter": {"Prefix": ""},
        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1},
    }
    client, name = store.client, {"Bucket": store.bucket}

    def cors() -> None:
        client.put_bucket_cors(**name, CORSConfiguration={"CORSRules": [rule]})

    def lifecycle() -> None:
        rules = [each for each in _lifecycle_rules(store) if each.get("ID") != abort["ID"]]
        client.put_bucket_lifecycle_configuration(**name, LifecycleConfiguration={"Rules": [*rules, abort]})

    return [
        Finding(name="bucket", works=True, detail="created" if made else "exists already"),
        _optional("CORS", f"pages of {origin} may read", store, cors),
        _optional("lifecycle", "aborted uploads are removed after a day", store, lifecycle),
    ]


def _make(store: S3Store) -> bool:
    region = store.client.meta.region_name
    where: dict[str, Any] = {}
    if region and region not in ("us-east-1", "aws-global"):
        where = {"CreateBucketConfiguration": {"LocationConstraint": region}}
    with translated(f"s3://{store.bucket}"):
        # Asked first: some stores answer that they have created a bucket that was there.
        if _exists(store):
            return False
        try:
            store.client.create_bucket(Bucket=store.bucket, **where)
        except ClientError as exc:
            if exc.response["Error"]["Code"] != "BucketAlreadyOwnedByYou":
                raise
            return False
    return True


def _exists(store: S3Store) -> bool:
    """Whether the bucket is there and ours; what cannot be told is left to its creation."""
    try:
        store.client.head_bucket(Bucket=store.bucket)
    except ClientError as exc:
        if exc.response["ResponseMetadata"]["HTTPStatusCode"] in (301, 400, 403, 404):
            return False
        raise
    return True


def _lifecycle_rules(store: S3Store) -> list[dict[str, Any]]:
    """Existing rules, which are kept."""
    try:
        found = store.client.get_bucket_lifecycle_configuration(Bucket=store.bucket)
    except ClientError as exc:
        if exc.response["Error"]["Code"] != "NoSuchLifecycleConfiguration":
            raise
        return []
    rules: list[dict[str, Any]] = found.get("Rules", [])
    return rules


def _optional(name: str, detail: str, store: S3Store, work: Callable[[], None]) -> Finding:
    """A check that a farm can do without."""
    try:
        with translated(f"s3://{store.bucket}"):
            work()
    except StoreError as exc:
        return Finding(name=name, works=False, detail=str(exc), needed=False)
    return Finding(name=name, works=True, detail=detail, needed=False)


def _required(name: str, work: Callable[[], None]) -> Finding:
    try:
        work()
    except StoreError as exc:
        return Finding(name=name, works=False, detail=str(exc))
    return Finding(name=name, works=True, detail="")


def _expect(found: object, wanted: object) -> None:
    if found != wanted:
        raise StorePermanent(f"returned {found!r} instead of {wanted!r}")


def _deletes(place: Store) -> None:
    place.delete("file")
    place.delete("file")
    _expect(place.size("file"), None)


def _conditional_writes(place: Store) -> Finding:
    """Not required: without them the manifest is read back, and all attempts give the same bits."""
    name = "conditional writes"
    try:
        place.put_if_absent("manifest", b"first", "text/plain")
        refused = not place.put_if_absent("manifest", b"second", "text/plain")
        kept = place.get("manifest") == b"first"
    except StoreError as exc:
        return Finding(name=name, works=False, detail=str(exc))
    if not (refused and kept):
        hint = "If-None-Match is ignored; set CHORALE_S3_CONDITIONAL_WRITES=no to read back instead"
        return Finding(name=name, works=False, needed=False, detail=hint)
    by_reading = isinstance(place, S3Store) and not place.options.conditional_writes
    return Finding(name=name, works=True, detail="replaced by reading back" if by_reading else "")


def _presigned(place: Store) -> Finding:
    try:
        place.put("signed", b"signed", "text/plain")
        url = place.presign("signed", _PRESIGN_S)
        assert url is not None, "S3 can sign URLs"
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S, context=_trust(place)) as answer:
            _expect(answer.read(), b"signed")
    except (StoreError, OSError, urllib.error.URLError) as exc:
        return Finding(name="presigned URLs", works=False, needed=False, detail=str(exc))
    return Finding(name="presigned URLs", works=True, needed=False, detail="")


def _trust(place: Store) -> ssl.SSLContext:
    """The certificates that the store's own client trusts."""
    bundle = place.options.ca_bundle if isinstance(place, S3Store) else None
    return ssl.create_default_context(cafile=bundle or os.environ.get("AWS_CA_BUNDLE") or None)


def _cors(store: S3Store) -> Finding:
    name = "CORS"
    try:
        with translated(f"s3://{store.bucket}"):
            rules = store.client.get_bucket_cors(Bucket=store.bucket).get("CORSRules", [])
    except StoreError as exc:
        detail = f"{exc}; other pages have to use chorale serve"
        return Finding(name=name, works=False, needed=False, detail=detail)
    origins = sorted({origin for rule in rules for origin in rule.get("AllowedOrigins", [])})
    return Finding(name=name, works=bool(origins), needed=False, detail=f"for {', '.join(origins)}")
