"""Names of models that whoever runs this process knows, such as a farm. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol


class NameResolver(Protocol):
    """Finds models by name; asked for names that are neither built in nor paths."""

    def path(self, name: str) -> Path | None:
        """Where the model is on this machine, fetched if need be; None for a name that is not known."""
        ...

    def lasting_name(self, name: str) -> str | None:
        """A name that will stand for the same files later; None for a name that is not known."""
        ...

    def is_still_known(self, name: str) -> bool:
        """Whether a lasting name stands for a model now; asks anew, whatever was found before."""
        ...


_resolvers: list[NameResolver] = []


@contextmanager
def resolving_names(resolver: NameResolver) -> Iterator[None]:
    """While it is open, `render.models.folder.resolve_model` asks this resolver, the newest one first."""
    _resolvers.append(resolver)
    try:
        yield
    finally:
        _resolvers.remove(resolver)


def are_names_known() -> bool:
    """Whether there is a resolver."""
    return bool(_resolvers)


def known_path(name: str) -> Path | None:
    """See `NameResolver.path`."""
    return next((path for each in reversed(_resolvers) if (path := each.path(name)) is not None), None)


def lasting_name(name: str) -> str | None:
    """See `NameResolver.lasting_name`."""
    names = (each.lasting_name(name) for each in reversed(_resolvers))
    return next((found for found in names if found is not None), None)


def is_still_known(name: str) -> bool:
    """See `NameResolver.is_still_known`."""
    return any(each.is_still_known(name) for each in _resolvers)
