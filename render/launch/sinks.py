"""Opens the sink at a URL by the entry point of its scheme, so that the engine knows no store."""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoints, entry_points
from typing import cast

from render.errors import BadInput
from render.sink import OpenSink, Sink, SinkObserver

GROUP = "chorale.sinks"


def open_sink(url: str, *, patience_s: float, observer: SinkObserver | None = None) -> Sink:
    """The sink at `url`; a path without a scheme is a folder, as with `file`. Raises `BadInput`."""
    scheme = url.partition("://")[0] if "://" in url else "file"
    opener = find_opener(scheme)
    if opener is None:
        raise BadInput("out", url, f"has no sink; install a package with an entry point {GROUP} {scheme}")
    return opener(url, patience_s=patience_s, observer=observer)


@cache
def find_opener(scheme: str) -> OpenSink | None:
    """What opens sinks of this scheme, None if nothing does."""
    found = next((each for each in _entry_points() if each.name == scheme), None)
    return None if found is None else cast(OpenSink, found.load())


@cache
def _entry_points() -> EntryPoints:
    """Reads the metadata of all installed packages, some 20 ms; a rank does so before its first request."""
    return entry_points(group=GROUP)
