"""Whose a place is, looked at by several machines at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from infra.store.base import Store
from infra.store.decorator import StoreDecorator
from infra.store.local import LocalStore
from jobs.image_store import MARKER, claim, finished_image
from render.errors import BadInput

Result = TypeVar("Result")
OURS, OTHERS = "a" * 64, "b" * 64


class Interrupted(StoreDecorator):
    """A store in which another machine does something right after our first look."""

    def __init__(self, store: Store, meanwhile: Callable[[], None]) -> None:
        super().__init__(store)
        self._meanwhile = meanwhile
        self._looks = 0

    def _call(self, operation: str, sent: int, work: Callable[[], Result]) -> Result:
        try:
            return work()
        finally:
            self._looks += operation == "get"
            if self._looks == 2:
                self._looks += 1
                self._meanwhile()

    def _around(self, store: Store) -> Store:
        return Interrupted(store, self._meanwhile)


def test_a_claim_that_a_mate_makes_while_we_look_is_seen(tmp_path: Path) -> None:
    place = LocalStore(tmp_path)
    assert finished_image(Interrupted(place, lambda: claim(place, OURS, "{}")), OURS) is None
    assert place.size(MARKER) is not None


def test_a_claim_of_another_image_while_we_look_is_refused(tmp_path: Path) -> None:
    place = LocalStore(tmp_path)
    with pytest.raises(BadInput, match="another spec's unfinished image"):
        finished_image(Interrupted(place, lambda: claim(place, OTHERS, "{}")), OURS)


def test_a_place_with_anything_else_in_it_is_refused(tmp_path: Path) -> None:
    place = LocalStore(tmp_path)
    place.put("holiday.txt", b"x", "text/plain")
    with pytest.raises(BadInput, match="holds no Chorale image"):
        finished_image(place, OURS)
