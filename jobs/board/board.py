"""What the board's pages and its API share: the farm, its store, and short-lived caches."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from sqlalchemy import select

from infra.errors import ServiceError, StoreError
from infra.store.base import Store
from jobs.announcement import job_announcer
from jobs.board.access import Access, TokensFile
from jobs.board.deadlines import Deadlines
from jobs.board.login_limit import LoginLimit
from jobs.board.proxy_login import ProxyLogin
from jobs.board.sent_files import SentFiles
from jobs.board.uploads import Uploads
from jobs.db.audit import session_secret
from jobs.db.board_queries import is_known_model, known_models, queue_rates
from jobs.db.folders import image_folder
from jobs.db.nodes import farm_bfloat16
from jobs.db.queries import find_job
from jobs.db.queues import list_queues
from jobs.db.reviews import batch_counts
from jobs.db.submission import JobOptions, Preparation, Receipt, insert_batch
from jobs.db.tables import jobs
from jobs.errors import UnknownJob
from jobs.estimate import estimate
from jobs.farm import Farm, open_images
from jobs.input_assets import upload_inputs
from jobs.intake.batch import check_model_folders, check_single
from jobs.intake.options import IntakeOptions
from jobs.models.catalog import ModelCatalog, is_pointed
from jobs.review.checking import check_batch_images
from render.errors import BadInput
from render.models.known_names import lasting_name
from render.models.packaged import packaged_models
from render.sink import UNFINISHED_PREVIEW
from render.spec import FILE_FIELDS, PARTS_OF_FILES, names_file
from render.spec.enlarger import BUILTIN as BUILTIN_ENLARGER

Value = TypeVar("Value")
WHO = "the board"
"""Owner of what is submitted on it."""
_ESTIMATE_S = 15.0
"""How long an estimate is cached; it reads every queued job."""
_QUEUES_S = 1.0
_MODELS_S = 2.0
_COUNTS_S = 5.0
_MOST_CACHED = 1000
_ID_LENGTH = 16
_log = logging.getLogger(__name__)


def _no_inputs() -> None:
    """Stores nothing, for images of words alone."""


@dataclass
class Board:
    """One running board. The constructor opens nothing."""

    farm: Farm
    access: Access
    tokens: TokensFile | None = None
    proxy: ProxyLogin | None = None
    """How a proxy logs people in, if one does."""
    logins: LoginLimit = field(default_factory=LoginLimit)
    deadlines: Deadlines = field(default_factory=Deadlines)
    ending: threading.Event = field(default_factory=threading.Event)
    """Set when the board stops; event streams end then."""
    uploads: Uploads = field(default_factory=Uploads)
    sent: SentFiles = field(default_factory=SentFiles)
    _cache: dict[str, tuple[float, Any]] = field(default_factory=dict)
    _locks: dict[str, threading.Lock] = field(default_factory=dict)
    _done: dict[str, tuple[str, str]] = field(default_factory=dict)
    waiting: int = 0
    """Requests that wait for their images; changed by the event loop's thread only."""
    _secret: bytes = field(default=b"", repr=False)
    _checking: set[str] = field(default_factory=set)
    """Batches whose images are being looked at."""

    def current_access(self) -> Access:
        """Who may do what, as the tokens file has it now."""
        if self.tokens is not None:
            self.access = self.tokens.current()
        return self.access

    def store(self) -> Store:
        """The farm's store: finished and unfinished images, each in a folder of its own."""
        return open_images(self.farm.settings)

    def job(self, beginning: str) -> str:
        """The id of the only job whose id starts with `beginning`; raises `UnknownJob`."""
        if not (0 < len(beginning) <= _ID_LENGTH and set(beginning) <= set("0123456789abcdef")):
            raise UnknownJob(f"unknown job {ascii(beginning)[:60]}")
        with self.farm.database.read() as connection:
            return find_job(connection, beginning)

    def farm_secret(self) -> bytes:
        """The secret that all boards of this farm share."""
        if not self._secret:
            with self.farm.database.write() as connection:
                self._secret = session_secret(connection)
        return self._secret

    def image_of(self, job: str) -> tuple[str, str | None]:
        """(folder, root) of a job's image; the root is None until the job is done. Done images are cached."""
        known = self._done.get(job)
        if known is not None:
            return known
        with self.farm.database.read() as connection:
            found = connection.execute(select(jobs.c.root).where(jobs.c.id == job)).first()
            folder = "" if found is None else image_folder(connection, job)
        if found is None:
            raise UnknownJob(f"unknown job {ascii(job)[:60]}")
        if found.root is not None:
            if len(self._done) >= 10_000:
                self._done.clear()
            self._done[job] = folder, found.root
        return folder, found.root

    def queues(self) -> list[dict[str, Any]]:
        """All queues: rules, and jobs by state."""
        return self._cached("queues", _QUEUES_S, self._queues)

    def outlook(self) -> list[dict[str, Any]]:
        """The queues, each with the images of the last hour and its estimate."""
        return self._cached("outlook", _QUEUES_S, self._outlook)

    def estimates(self) -> list[dict[str, Any]]:
        """The output of `chorale estimate`, at most some seconds old."""
        return self._cached("estimate", _ESTIMATE_S, self._estimates)

    def batch_counts(self, batch: str, *, fresh: bool) -> tuple[dict[str, int], dict[str, int]]:
        """See `jobs.db.reviews.batch_counts`; some seconds old for the later pages of a contact sheet, which
        come one after the other: counting has to look at every image of the batch."""
        name = f"counts of {batch}"
        if fresh:
            self._cache.pop(name, None)
        if len(self._cache) > _MOST_CACHED:
            self._cache.clear()
        return self._cached(name, _COUNTS_S, partial(self._batch_counts, batch))

    def _batch_counts(self, batch: str) -> tuple[dict[str, int], dict[str, int]]:
        with self.farm.database.read() as connection:
            return batch_counts(connection, batch)

    def forget_queues(self) -> None:
        """Drop the cached queues after a change."""
        for name in ("queues", "outlook", "estimate"):
            self._cache.pop(name, None)

    def forget_jobs(self, ids: Iterable[str]) -> None:
        """Drop what is cached of jobs that were deleted."""
        for id in ids:
            self._done.pop(id, None)
        self.forget_queues()

    def unfinished_preview(self, folder: str) -> int | None:
        """Bytes of the newest preview of an unfinished image; None while there is none."""
        try:
            return self.store().size(f"{folder}/{UNFINISHED_PREVIEW}")
        except StoreError:
            return None

    def submit(
        self,
        values: dict[str, Any],
        options: JobOptions,
        intake: IntakeOptions | None = None,
        files: Mapping[str, Path] = MappingProxyType({}),
    ) -> Receipt:
        """Queue one image, or each that its prompt's wildcards stand for; raises `BadInput`.

        `files` are the images of the spec that came with the request, by their fields.
        """
        for name in FILE_FIELDS:
            if names_file(name, values.get(name)):
                raise BadInput(name, values[name][:120], "is a file; submit this image with chorale submit")
        for name in PARTS_OF_FILES:
            if values.get(name):
                fix = "is a file; submit this image with chorale submit"
                raise BadInput(name, str(values[name])[:120], fix)
        with Preparation(options, farm_bfloat16(self.farm.database)) as prepared:
            given = {**values, **{name: str(path) for name, path in files.items()}}
            check_single(given, intake or IntakeOptions(), prepared, self.check_models)
            announce = job_announcer(self.farm)
            # Files that a variation's original has are known by their digests: no path of it is read here.
            sends = files or values.get("enlarger") == BUILTIN_ENLARGER
            store_inputs = partial(upload_inputs, prepared.with_images, self.store()) if sends else _no_inputs
            receipt = insert_batch(self.farm.database, prepared, str(values.get("prompt"))[:80], store_inputs)
        announce()
        return receipt

    def check_images(self, batch: str) -> None:
        """Run the quality gate over a batch's images in the background, unless it runs already.

        Agents look at new images only; this is for those that were rendered before there was a gate.
        """
        if batch in self._checking:
            return
        self._checking.add(batch)
        threading.Thread(target=self._check_images, args=(batch,), daemon=True, name="gate").start()

    def _check_images(self, batch: str) -> None:
        try:
            check_batch_images(self.farm, batch)
        except (ServiceError, StoreError) as exc:
            _log.warning("the images of batch %s were not checked: %s", batch, exc)
        except Exception:
            _log.exception("the images of batch %s could not be checked", batch)
        finally:
            self._checking.discard(batch)

    def check_models(self, model: str, refiner: str | None, vae: str | None, base: str | None) -> None:
        """Raise `BadInput` for a model that no job of this farm has used, for what replaces its parts.

        A web page must not make the server read other files or download models.
        """
        for given, name in (("refiner", refiner), ("vae", vae), ("base", base)):
            if name is not None:
                fix = "cannot be set on the board; submit this image with chorale submit"
                raise BadInput(given, name[:120], fix)
        if model not in packaged_models() and lasting_name(model) is None:
            with self.farm.database.read() as connection:
                if not is_known_model(connection, model):
                    fix = "is new to this farm; submit its first image with chorale submit"
                    raise BadInput("model", model[:120], fix)
        check_model_folders(model, refiner, vae, base)

    def model_names(self) -> list[str]:
        """The models that a request may name: those that the farm has by name, and those of earlier images.

        At most some seconds old, since it reads a record of each model from the store. Raises `StoreError`.
        """
        return self._cached("models", _MODELS_S, self._model_names)

    def _model_names(self) -> list[str]:
        catalog = ModelCatalog(self.store())
        added = catalog.models()
        with self.farm.database.read() as connection:
            used = set(known_models(connection)) - {model.pointed_name for model in added}
        # A job's model may have been removed since, or its name given to another one.
        there = {name for name in used if not is_pointed(name) or catalog.find(name) is not None}
        return sorted({*packaged_models(), *there, *(model.name for model in added)})

    def _queues(self) -> list[dict[str, Any]]:
        with self.farm.database.read() as connection:
            return list_queues(connection)

    def _outlook(self) -> list[dict[str, Any]]:
        estimates, known = {line["queue"]: line for line in self.estimates()}, self.queues()
        with self.farm.database.read() as connection:
            rates = queue_rates(connection)
        none = {"images": 0, "megapixels": 0.0}
        return [
            queue | {"hour": rates.get(queue["name"], none), "estimate": estimates.get(queue["name"])}
            for queue in known
        ]

    def _estimates(self) -> list[dict[str, Any]]:
        with self.farm.database.read() as connection:
            return estimate(connection)

    def _cached(self, name: str, seconds: float, read: Callable[[], Value]) -> Value:
        """A cached value, or a new one when it is older than `seconds`; concurrent callers share one read."""
        with self._locks.setdefault(name, threading.Lock()):
            moment, cached = self._cache.get(name, (float("-inf"), None))
            if time.monotonic() - moment > seconds:
                cached = read()
                self._cache[name] = time.monotonic(), cached
            value: Value = cached
            return value
