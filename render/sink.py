"""Where encoded files go. The engine knows only this protocol; `infra.store` has the real ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

WORK = "work/"
"""Prefix of the files of an unfinished image; all of them are deleted once the image is published."""
UNFINISHED_PREVIEW = f"{WORK}preview.webp"
"""The image at the last finished stage, made small."""
CHECKPOINT = f"{WORK}checkpoint.safetensors"
"""The canvas between two steps; see `render.denoise.checkpoint`."""


class Sink(Protocol):
    """Takes whole files by key, and gives back those of unfinished work.

    A key is a relative path such as `image_files/10/0_1.png`. All methods may be called from several
    threads at once: tiles are stored beside each other.
    """

    def put(self, key: str, data: bytes, content_type: str, immutable: bool = False) -> None:
        """Store `data` whole or not at all, replacing what was there.

        `immutable` promises that this key will never hold other bytes.
        """
        ...

    def size(self, key: str) -> int | None:
        """Bytes of the file, None when it is not there."""
        ...

    def get(self, key: str) -> bytes:
        """A file that is there."""
        ...

    def delete(self, key: str) -> None:
        """Remove the file; harmless when it is not there."""
        ...

    def put_if_absent(self, key: str, data: bytes, content_type: str) -> bool:
        """Store `data` unless the key exists with other bytes; False when it does."""
        ...


class SinkCall(Protocol):
    """One finished try of a sink's operation, as an observer sees it."""

    @property
    def operation(self) -> str:
        """put, put_if_absent, get, size or delete."""
        ...

    @property
    def outcome(self) -> str:
        """ok, missing, denied, retryable or permanent."""
        ...

    @property
    def bytes(self) -> int:
        """Sent, or for a get received."""
        ...

    @property
    def seconds(self) -> float: ...


SinkObserver = Callable[[SinkCall], None]
"""Called in the thread that made the call."""


class OpenSink(Protocol):
    """What the entry points of the group `chorale.sinks` name, one for each scheme of a URL."""

    def __call__(self, url: str, *, patience_s: float, observer: SinkObserver | None = None) -> Sink:
        """The sink at a URL or a folder's path; opens no connection yet.

        An outage is waited out for `patience_s` seconds. Raises `BadInput`. The sink raises `SinkError`, and
        `SinkUnavailable` where its store is away.
        """
        ...


class Entry(Protocol):
    """One file in a listing."""

    @property
    def key(self) -> str: ...

    @property
    def size(self) -> int: ...


class Source(Protocol):
    """Where a published image is read from."""

    def get(self, key: str) -> bytes:
        """A file that is there."""
        ...

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """All files whose keys start with `prefix`, sorted."""
        ...
