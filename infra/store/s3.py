"""A bucket of any S3 as an object store."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from botocore.exceptions import ClientError

from infra.errors import StoreMissing, StoreRetryable
from infra.store.base import Entry, checked_key
from infra.store.s3_client import S3Options, make_client
from infra.store.s3_errors import translated

_IMMUTABLE = "public, max-age=31536000, immutable"
_CHANGING = "no-cache"
"""May be cached, but must be revalidated: the manifest, the preview and unfinished work."""
_PAGE = 1000
"""Keys per page of a listing; S3's limit."""


class S3Store:
    """The `Store` protocol over a bucket, below a prefix. Opens nothing until it is used."""

    def __init__(self, bucket: str, prefix: str, options: S3Options) -> None:
        self.bucket, self.prefix, self.options = bucket, prefix, options

    def __repr__(self) -> str:
        return f"S3Store({self.url()!r})"

    @property
    def client(self) -> Any:
        return make_client(self.options)

    def put(self, key: str, data: bytes, content_type: str, immutable: bool = False) -> None:
        with translated(self.url(key)):
            self._put(key, data, content_type, _IMMUTABLE if immutable else _CHANGING)

    def put_if_absent(self, key: str, data: bytes, content_type: str) -> bool:
        if not self.options.conditional_writes:
            return self._put_by_reading(key, data, content_type)
        with translated(self.url(key)):
            try:
                self._put(key, data, content_type, _CHANGING, IfNoneMatch="*")
                return True
            except ClientError as exc:
                code = exc.response["Error"]["Code"]
                if code == "NotImplemented":
                    return self._put_by_reading(key, data, content_type)
                if code not in ("PreconditionFailed", "412"):
                    raise
        # It may be our own write: its response can be lost, and the retry then finds the object.
        existing = self._find(key)
        if existing is None:
            raise StoreRetryable(f"{self.url(key)}: was deleted meanwhile; try again")
        return existing == data

    def get(self, key: str) -> bytes:
        with translated(self.url(key)):
            return self._get(key)

    def get_range(self, key: str, start: int, length: int) -> bytes:
        if length <= 0:
            return b""
        with translated(self.url(key)):
            try:
                return self._get(key, Range=f"bytes={start}-{start + length - 1}")
            except ClientError as exc:
                if exc.response["Error"]["Code"] in ("InvalidRange", "416"):
                    return b""
                raise

    def size(self, key: str) -> int | None:
        try:
            with translated(self.url(key)):
                answer = self.client.head_object(Bucket=self.bucket, Key=self._key(key))
        except StoreMissing:
            return None
        return int(answer["ContentLength"])

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        before = self._before()
        for page in self._pages(Prefix=before + prefix):
            for found in page.get("Contents", []):
                yield Entry(
                    key=found["Key"][len(before) :],
                    size=found["Size"],
                    modified=found["LastModified"].timestamp(),
                )

    def folders(self) -> Iterator[str]:
        before = self._before()
        for page in self._pages(Prefix=before, Delimiter="/"):
            for found in page.get("CommonPrefixes", []):
                yield found["Prefix"][len(before) : -1]

    def delete(self, key: str) -> None:
        with translated(self.url(key)):
            self.client.delete_object(Bucket=self.bucket, Key=self._key(key))

    def presign(self, key: str, seconds: int) -> str | None:
        with translated(self.url(key)):
            what = {"Bucket": self.bucket, "Key": self._key(key)}
            return str(self.client.generate_presigned_url("get_object", Params=what, ExpiresIn=seconds))

    def url(self, key: str = "") -> str:
        return "/".join(part for part in (f"s3://{self.bucket}", self.prefix, key) if part)

    def within(self, folder: str) -> S3Store:
        return S3Store(self.bucket, self._key(folder), self.options)

    def _key(self, key: str) -> str:
        return self._before() + checked_key(key)

    def _before(self) -> str:
        """The prefix of all keys of this store in the bucket."""
        return f"{self.prefix}/" if self.prefix else ""

    def _put(self, key: str, data: bytes, content_type: str, cache: str, **more: str) -> None:
        self.client.put_object(
            Bucket=self.bucket,
            Key=self._key(key),
            Body=data,
            ContentType=content_type,
            CacheControl=cache,
            **more,
        )

    def _put_by_reading(self, key: str, data: bytes, content_type: str) -> bool:
        """For stores without conditional writes: read, write, then read back and compare."""
        existing = self._find(key)
        if existing is None:
            self.put(key, data, content_type)
            existing = self.get(key)
        return existing == data

    def _find(self, key: str) -> bytes | None:
        try:
            return self.get(key)
        except StoreMissing:
            return None

    def _get(self, key: str, **more: str) -> bytes:
        answer = self.client.get_object(Bucket=self.bucket, Key=self._key(key), **more)
        data: bytes = answer["Body"].read()
        return data

    def _pages(self, **what: str) -> Iterator[dict[str, Any]]:
        with translated(self.url()):
            paginator = self.client.get_paginator("list_objects_v2")
            yield from paginator.paginate(Bucket=self.bucket, PaginationConfig={"PageSize": _PAGE}, **what)
