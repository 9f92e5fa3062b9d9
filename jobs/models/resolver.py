"""Finds models by the names that a farm knows, wherever `render` resolves a model's name."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from infra.settings import Settings, default_home
from infra.store.base import Store
from jobs.models.cache import ModelCache
from jobs.models.catalog import MODELS, ModelCatalog, StoredModel, may_be_name

_FRESH_S = 10.0
"""A name is looked up again after so long."""


class FarmModels:
    """`NameResolver` of a farm. `whole` is set where models are rendered with; elsewhere their configurations
    and the headers of their weights are enough."""

    def __init__(self, settings: Settings, open_images: Callable[[], Store], whole: bool) -> None:
        self._settings, self._open_images, self._whole = settings, open_images, whole
        self._known: dict[str, tuple[float, StoredModel | None]] = {}

    def path(self, name: str) -> Path | None:
        """See `NameResolver`."""
        model = self.find(name)
        if model is None:
            return None
        return self._cache.whole(model) if self._whole else self._cache.headers(model)

    def lasting_name(self, name: str) -> str | None:
        """See `NameResolver`."""
        model = self.find(name)
        return None if model is None else model.pointed_name

    def is_still_known(self, name: str) -> bool:
        """See `NameResolver`."""
        self._known.pop(name, None)
        return self.find(name) is not None

    def find(self, name: str) -> StoredModel | None:
        """The model of a name; a batch of many rows asks the store once."""
        looked, found = self._known.get(name, (0.0, None))
        if not looked or time.monotonic() - looked > _FRESH_S:
            found = self._catalog.find(name) if may_be_name(name) else None
            self._known[name] = (time.monotonic(), found)
        return found

    @cached_property
    def _catalog(self) -> ModelCatalog:
        return ModelCatalog(self._open_images())

    @cached_property
    def _cache(self) -> ModelCache:
        return ModelCache(default_home() / MODELS, self._catalog, self._settings.model_cache_gib * 2**30)
