"""What the board's pages and its API share: the farm, the images, and things that are worth remembering."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy import select

from infra.errors import StoreError
from infra.store.base import Store
from jobs.board.access import Access
from jobs.db.board_queries import is_known_model, queue_rates
from jobs.db.queries import find_job
from jobs.db.queues import list_queues
from jobs.db.submission import BatchItem, JobOptions, Receipt, submit
from jobs.db.tables import jobs
from jobs.errors import UnknownJob
from jobs.estimate import estimate
from jobs.farm import Farm, open_images
from render.errors import BadInput
from render.models.folder import BUILTIN
from render.sink import UNFINISHED_PREVIEW
from render.spec import Spec

Answer = TypeVar("Answer")
_ESTIMATE_S = 15.0
"""An estimate looks at every job that waits; so long it is good enough."""
_QUEUES_S = 1.0
_ID_LENGTH = 16


@dataclass
class Board:
    """One running board. Constructors open nothing."""

    farm: Farm
    access: Access
    ending: threading.Event = field(default_factory=threading.Event)
    """Set when the board stops; streams end then."""
    _kept: dict[str, tuple[float, Any]] = field(default_factory=dict)
    _locks: dict[str, threading.Lock] = field(default_factory=dict)
    _done: dict[str, tuple[str, str]] = field(default_factory=dict)

    def store(self) -> Store:
        """Where finished and unfinished images are, each in a folder named by its digest."""
        return open_images(self.farm.settings)

    def job(self, beginning: str) -> str:
        """The id of the one job that begins so; raises `UnknownJob`."""
        if not (0 < len(beginning) <= _ID_LENGTH and set(beginning) <= set("0123456789abcdef")):
            raise UnknownJob(f"job: {ascii(beginning)[:60]} is not known")
        with self.farm.database.read() as connection:
            return find_job(connection, beginning)

    def image_of(self, job: str) -> tuple[str, str | None]:
        """(digest, root) of a job's image; no root until it is done. What is done stays what it is."""
        known = self._done.get(job)
        if known is not None:
            return known
        with self.farm.database.read() as connection:
            found = connection.execute(select(jobs.c.digest, jobs.c.root).where(jobs.c.id == job)).first()
        if found is None:
            raise UnknownJob(f"job: {ascii(job)[:60]} is not known")
        if found.root is not None:
            if len(self._done) >= 10_000:
                self._done.clear()
            self._done[job] = found.digest, found.root
        return found.digest, found.root

    def queues(self) -> list[dict[str, Any]]:
        """All queues: their rules, and their jobs by state."""
        return self._remember("queues", _QUEUES_S, self._queues)

    def outlook(self) -> list[dict[str, Any]]:
        """The queues, with what was finished of each within the last hour, and the estimate."""
        return self._remember("outlook", _QUEUES_S, self._outlook)

    def estimates(self) -> list[dict[str, Any]]:
        """What `chorale estimate` tells, at most some seconds old."""
        return self._remember("estimate", _ESTIMATE_S, self._estimates)

    def forget_queues(self) -> None:
        """Look anew at what has just been changed."""
        for name in ("queues", "outlook", "estimate"):
            self._kept.pop(name, None)

    def unfinished_preview(self, digest: str) -> int | None:
        """Bytes of the newest picture of an unfinished image; None while there is none."""
        try:
            return self.store().size(f"{digest}/{UNFINISHED_PREVIEW}")
        except StoreError:
            return None

    def submit(self, values: dict[str, Any], terms: JobOptions) -> Receipt:
        """Queue one image; raises `BadInput`."""
        if isinstance(values.get("init"), str):
            raise BadInput("init", values["init"][:120], "is a file; use chorale submit")
        spec = Spec.from_mapping(values)
        self.check_models(spec)
        asked = iter([BatchItem(row=1, custom_id="image", spec=spec)])
        return submit(self.farm.database, asked, spec.prompt[:80], terms)

    def check_models(self, spec: Spec) -> None:
        """Raise `BadInput` for a model that this farm has not met, and for any refiner: a web page should
        neither make a server look for files nor fetch models from elsewhere."""
        model = spec.model
        if spec.refiner is not None:
            raise BadInput("refiner", spec.refiner[:120], "is not for web pages; use chorale submit")
        if model == BUILTIN:
            return
        with self.farm.database.read() as connection:
            if not is_known_model(connection, model):
                raise BadInput("model", model[:120], "is new to this farm; chorale submit its first image")

    def _queues(self) -> list[dict[str, Any]]:
        with self.farm.database.read() as connection:
            return list_queues(connection)

    def _outlook(self) -> list[dict[str, Any]]:
        estimates, known = {line["queue"]: line for line in self.estimates()}, self.queues()
        with self.farm.database.read() as connection:
            rates = queue_rates(connection)
        nothing = {"images": 0, "megapixels": 0.0}
        return [
            queue | {"hour": rates.get(queue["name"], nothing), "estimate": estimates.get(queue["name"])}
            for queue in known
        ]

    def _estimates(self) -> list[dict[str, Any]]:
        with self.farm.database.read() as connection:
            return estimate(connection)

    def _remember(self, name: str, seconds: float, look: Callable[[], Answer]) -> Answer:
        """The answer of a moment ago, or a new one; many who ask at once wait for one of them to look."""
        with self._locks.setdefault(name, threading.Lock()):
            at, answer = self._kept.get(name, (float("-inf"), None))
            if time.monotonic() - at > seconds:
                answer = look()
                self._kept[name] = time.monotonic(), answer
            found: Answer = answer
            return found
