"""Submission: specs become jobs. An image that is submitted twice is one job, whoever submits it."""

from __future__ import annotations

import math
import pickle
import tempfile
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count as counting
from itertools import takewhile
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, delete, func, insert, select, update

from infra.database import Database, insert_unless_there, now
from infra.errors import ServiceError
from jobs.db.dependencies import Predecessor, add_dependency, without_circles
from jobs.db.leases import lock_inputs, lock_placement
from jobs.db.names import check_name, longest
from jobs.db.nodes import farm_bfloat16
from jobs.db.prompt_search import index_words, stored_words
from jobs.db.state_machine import change_state
from jobs.db.tables import batches, entries, events, jobs, rates
from jobs.formatting import printable
from jobs.tags import stored_tags
from render.errors import BadInput
from render.model_info import ModelInfo
from render.models.known_names import is_still_known, lasting_name
from render.models.model_paths import absolute_name, check_additions, find_model_paths, model_info
from render.models.number_format import resolve_dtype
from render.models.vae_folder import resolve_vae
from render.models.weight_memory import weight_bytes
from render.plan.plan import Plan, make_plan
from render.spec import AUTO, NO_QUANTIZATION, Spec
from render.spec.control import ControlNetwork
from render.spec.ip_adapter import IpAdapter
from render.spec.prompt_text import clean

Network = TypeVar("Network", ControlNetwork, IpAdapter)
LEAST_USE = 0.5
"""Of the calls that the ranks of a group have time for those that one rank would make, at least."""
MAX_AUTO_RANKS = 64
"""Beyond this the borders cost more than another rank gains."""
_LONGEST_SUBMISSION_S = 86_400.0
_CHUNK_ROWS = 1000
_SIZE_BYTES = 4
"""Of the length before each packed chunk."""
_SHOWN_TWINS = 5
_GEOMETRY = tuple(
    field.name
    for field in Spec.fields()
    if field.name not in ("prompt", "negative_prompt", "seed", "variation")
)
"""Fields that may change the plan, and so the memory and the work."""
_geometry_values = attrgetter(*_GEOMETRY)
_OPTION_COLUMNS = (
    "owner",
    "queue",
    "priority",
    "least_ranks",
    "most_ranks",
    "memory",
    "not_before",
    "deadline",
    "dependency",
    "require_tag",
)


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """How a job is run; nothing here changes a pixel. Raises `BadInput` for what not every database holds."""

    owner: str
    queue: str = "default"
    priority: int | None = None
    ranks: int | None = None
    not_before: float | None = None
    deadline: float | None = None
    after: tuple[Predecessor, ...] = ()
    """What has to end before the jobs start, see `jobs.db.find_predecessors`."""
    require_tag: tuple[str, ...] = ()
    """Tags that each of its nodes must have, see `jobs.tags.parse_tags`."""
    channels: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Channels that the batch's renditions are made for, see `jobs.renditions.farm.wanted_channels`."""

    def __post_init__(self) -> None:
        for name, value in (("owner", self.owner), ("queue", self.queue)):
            check_name(name, value, jobs.c[name])
        if self.not_before and self.deadline and self.deadline <= self.not_before:
            raise BadInput("deadline", None, "is not after not_before; move one of them")


@dataclass(frozen=True, kw_only=True)
class BatchItem:
    """One image of a batch: its spec, its row in the batch and its custom id."""

    row: int
    custom_id: str
    spec: Spec
    require_tag: tuple[str, ...] | None = None
    """In place of those of the options, where the row has its own."""


@dataclass(kw_only=True)
class Receipt:
    """The result of a submission."""

    batch: str
    new: int = 0
    known: int = 0
    done: int = 0
    """How many of the known ones are finished already."""
    jobs: list[tuple[str, str]] = field(default_factory=list)
    """(custom id, id of the job) in the order of the batch."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        jobs_of = [{"custom_id": custom_id, "id": job} for custom_id, job in self.jobs]
        return {
            "batch": self.batch,
            "new": self.new,
            "known": self.known,
            "done": self.done,
            "jobs": jobs_of,
        }


class Preparation:
    """The checked images of a batch, ready to be inserted; `add` refuses what no database would take.

    Everything that a spec, a model or a name can have wrong is found here, before the first row is written: a
    batch is queued as a whole or not at all. Rows are kept packed in a temporary file. Close it at the end.
    """

    def __init__(self, options: JobOptions, bfloat16: bool | None = None) -> None:
        """`bfloat16` is that of the farm's GPUs, see `jobs.db.nodes.farm_bfloat16`; None for CPUs."""
        # Models are read once per batch: a server runs for long, and a folder may change meanwhile.
        _models.cache_clear()
        self.options, self._bfloat16 = options, bfloat16
        self.count = 0
        self.with_images: list[BatchItem] = []
        """An item for each set of images that has to be in the farm's store before a job is."""
        self.twins: list[tuple[str, str]] = []
        """(custom id, custom id of the first one) of the first images that are the same as another one."""
        self.twin_count = 0
        self._spool = tempfile.TemporaryFile(prefix="chorale-batch-")  # noqa: SIM115
        self._chunk: list[dict[str, Any]] = []
        self._custom_ids: set[str] = set()
        self._first_of: dict[str, str] = {}
        self._images: set[Any] = set()
        self._names: dict[str, bool] = {}
        """Names of models: whether the farm knows them."""

    def __enter__(self) -> Preparation:
        return self

    def __exit__(self, *_: object) -> None:
        self._spool.close()

    def add(self, item: BatchItem) -> None:
        """Check one image and keep it. Raises `BadInput`, and keeps nothing of it then."""
        check_name("custom_id", item.custom_id, entries.c.custom_id)
        if item.custom_id in self._custom_ids:
            raise BadInput("custom_id", item.custom_id, "is already used in this batch; use another")
        row = job_row(item, self.options, self._bfloat16)
        self._custom_ids.add(item.custom_id)
        for name in (item.spec.model, item.spec.refiner, item.spec.base):
            if name is not None and name not in self._names:
                self._names[name] = lasting_name(name) is not None
        first = self._first_of.setdefault(row["id"], item.custom_id)
        if first != item.custom_id:
            self.twin_count += 1
            if len(self.twins) < _SHOWN_TWINS:
                self.twins.append((item.custom_id, first))
        digests = {asset.digest for asset in item.spec.assets}
        if not digests <= self._images:
            self._images |= digests
            self.with_images.append(item)
        self.count += 1
        self._chunk.append({"custom_id": item.custom_id, "row": item.row, "job": row})
        if len(self._chunk) == _CHUNK_ROWS:
            self._flush()

    def check_models(self) -> None:
        """Raise `BadInput` if a model of the farm was removed since it was found."""
        for name, known in self._names.items():
            if known and not is_still_known(name):
                raise BadInput("model", name, "was removed from the farm meanwhile; add it again")

    def chunks(self) -> Iterator[list[dict[str, Any]]]:
        """What was added, in order: `custom_id`, `row`, and the row of the table of jobs."""
        self._flush()
        self._spool.seek(0)
        while size := self._spool.read(_SIZE_BYTES):
            yield pickle.loads(zlib.decompress(self._spool.read(int.from_bytes(size, "big"))))
        self._spool.seek(0, 2)

    def _flush(self) -> None:
        if self._chunk:
            # Rows of a catalog are much alike: packed, 100,000 take some megabytes.
            packed = zlib.compress(pickle.dumps(self._chunk), 1)
            self._spool.write(len(packed).to_bytes(_SIZE_BYTES, "big") + packed)
            self._chunk = []


def submit(database: Database, items: Iterable[BatchItem], name: str, options: JobOptions) -> Receipt:
    """Check the images of a batch, then submit them all; raises `BadInput`, and nothing is queued then."""
    with Preparation(options, farm_bfloat16(database)) as prepared:
        for item in items:
            prepared.add(item)
        return insert_batch(database, prepared, name)


def insert_batch(
    database: Database, prepared: Preparation, name: str, store_inputs: Callable[[], None] = lambda: None
) -> Receipt:
    """Queue a prepared batch. Images that the farm knows already join the batch as they are.

    `store_inputs` is called before its jobs are inserted, while `chorale gc` deletes no inputs and
    `chorale model remove` no model (see `submissions_in_progress`). If it raises, nothing is queued.

    A cancelled job that is submitted again is queued again, with the new options; a failed one needs `retry`.
    Rows are inserted in chunks, so that a large batch does not block the database; if the database goes away
    meanwhile, the error says how many are queued, and submitting the batch again adds the rest.
    """
    options = prepared.options
    receipt = Receipt(batch=uuid.uuid4().hex[:12])
    label = printable(clean(name)).strip()[: longest(batches.c.name)] or "batch"
    with database.write() as connection:
        lock_inputs(connection)
        connection.execute(
            insert(batches).values(
                id=receipt.batch,
                name=label,
                owner=options.owner,
                queue=options.queue,
                created=now(),
                channels=dict(options.channels),
                # None for a batch that has never asked for any.
                channels_open=True if options.channels else None,
            )
        )
    try:
        store_inputs()
        prepared.check_models()
    except BaseException:
        with database.write() as connection:
            connection.execute(delete(batches).where(batches.c.id == receipt.batch))
        raise
    try:
        dependency = receipt.batch if options.after else None
        if dependency is not None:
            with database.write() as connection:
                add_dependency(connection, dependency, options.after)
        for chunk in prepared.chunks():
            for each in chunk:
                each["job"]["dependency"] = dependency
            with database.write() as connection:
                _submit_chunk(connection, chunk, receipt)
        with database.write() as connection:
            connection.execute(update(batches).where(batches.c.id == receipt.batch).values(submitted=now()))
    except ServiceError as exc:
        queued = f"{len(receipt.jobs):,} of {prepared.count:,} images are queued in batch {receipt.batch}"
        raise type(exc)(f"{exc}; {queued}, submit again to add the rest") from exc
    return receipt


def submissions_in_progress(connection: Connection) -> int:
    """Batches whose jobs are being inserted. One that was interrupted counts for a day."""
    recent = batches.c.submitted.is_(None), batches.c.created > now() - _LONGEST_SUBMISSION_S
    return connection.execute(select(func.count()).select_from(batches).where(*recent)).scalar_one()


def is_in_progress(connection: Connection, batch: str) -> bool:
    """Whether jobs of this batch are being inserted."""
    recent = batches.c.submitted.is_(None), batches.c.created > now() - _LONGEST_SUBMISSION_S
    return connection.execute(select(batches.c.id).where(batches.c.id == batch, *recent)).first() is not None


def _submit_chunk(connection: Connection, chunk: list[dict[str, Any]], receipt: Receipt) -> None:
    """Insert the entries of a chunk, and those of its jobs that are new."""
    rows = {each["job"]["id"]: each["job"] for each in chunk}
    known = insert_jobs(connection, rows, f"in batch {receipt.batch}")
    batch_entries = [
        {
            "batch": receipt.batch,
            "row": each["row"],
            "custom_id": each["custom_id"],
            "job": each["job"]["id"],
        }
        for each in chunk
    ]
    connection.execute(insert(entries), batch_entries)
    new = len(rows) - len(known)
    receipt.new += new
    receipt.known += len(chunk) - new
    receipt.done += sum(known.get(each["job"]["id"]) == "done" for each in chunk)
    receipt.jobs += [(each["custom_id"], each["job"]["id"]) for each in chunk]


def insert_jobs(connection: Connection, rows: dict[str, dict[str, Any]], where: str) -> dict[str, str]:
    """Insert those of some jobs, by id as `job_row` gives them, that are new; queue cancelled ones again.

    Returns the states of those that were known before, by id.
    """
    lock_placement(connection)
    # Sorted, as wherever many jobs are locked, so that two submitters do not deadlock.
    names = sorted(rows)
    states = select(jobs.c.id, jobs.c.state).where(jobs.c.id.in_(names))
    known = {found.id: found.state for found in connection.execute(states)}
    new = [rows[job] for job in names if job not in known]
    if new:
        moment = now()
        inserted = insert_unless_there(connection, jobs).values(created=moment, changed=moment)
        connection.execute(inserted, new)
        index_words(connection, new)
        event = {"fence": 0, "old": "", "new": "queued", "reason": f"submitted {where}"}
        connection.execute(insert(events).values(time=now()), [{"job": row["id"], **event} for row in new])
    again = sorted(job for job, state in known.items() if state == "cancelled")
    dependency = next((rows[job]["dependency"] for job in again), None)
    may_wait = set() if dependency is None else without_circles(connection, dependency, again)
    for job in again:
        options = {name: rows[job][name] for name in _OPTION_COLUMNS}
        if job not in may_wait:
            # What it would wait for waits for it: it has to come first.
            options["dependency"] = None
        reason = f"submitted again {where}"
        change_state(connection, job, "cancelled", "queued", reason, attempts=0, losses=0, **options)
    return known


def job_row(item: BatchItem, options: JobOptions, bfloat16: bool | None = None) -> dict[str, Any]:
    """The job of an image as a row of the table of jobs; raises `BadInput` for what cannot be rendered."""
    spec = resolved(item.spec, bfloat16)
    if len(spec.model) > longest(rates.c.model):
        fix = f"has more than {longest(rates.c.model)} characters; use a shorter path"
        raise BadInput("model", spec.model[:60], fix)
    info, weights = _models(*spec.model_names, spec.dtype, spec.quantize)
    changed = spec.lora or spec.embedding or spec.controlnet or spec.enlarger or spec.ip_adapter
    if changed or spec.quantize != NO_QUANTIZATION:
        check_additions(find_model_paths(*spec.model_names), spec)
        weights += sum(lora.bytes for lora in spec.lora)
        weights += sum(network.bytes for network in spec.controlnet)
        weights += sum(each.bytes for each in (spec.enlarger, spec.ip_adapter) if each is not None)
    needs = _needs(_geometry_values(spec), info, options.ranks)
    digest = spec.digest(info.digest)
    return {
        # 64 bits of the digest distinguish the images of a farm and are short enough to type.
        "id": digest[:16],
        "digest": digest,
        "spec": spec.to_dict(),
        "words": stored_words(spec.prompt),
        "model": spec.model,
        "owner": options.owner,
        "queue": options.queue,
        "priority": options.priority,
        "least_ranks": needs.least_ranks,
        "most_ranks": needs.most_ranks,
        "memory": [(ranks, above + weights) for ranks, above in needs.memory],
        "work": needs.work,
        "state": "queued",
        "not_before": options.not_before,
        "deadline": options.deadline,
        "require_tag": stored_tags(options.require_tag if item.require_tag is None else item.require_tag),
        # The submission sets it, since it has no id yet.
        "dependency": None,
    }


def resolved(spec: Spec, bfloat16: bool | None) -> Spec:
    """The spec with the full paths of its models and of the networks beside them, since agents run in other
    folders than whoever submits, and with the number format that `auto` means."""
    if spec.dtype == AUTO:
        spec = resolve_dtype(spec, find_model_paths(*spec.model_names), bfloat16)
    names = {"model": spec.model, "refiner": spec.refiner}
    found = {field: absolute_name(name) for field, name in names.items() if name is not None}
    if spec.vae is not None:
        names["vae"], found["vae"] = spec.vae, str(resolve_vae(spec.vae).absolute())
    if spec.base is not None:
        names["base"], found["base"] = spec.base, absolute_name(spec.base)
    changed: dict[str, Any] = {field: name for field, name in found.items() if name != names[field]}
    if spec.controlnet:
        changed["controlnet"] = tuple(map(_absolute, spec.controlnet))
    if spec.ip_adapter is not None:
        changed["ip_adapter"] = _absolute(spec.ip_adapter)
    return spec.with_changes(**changed) if changed else spec


def _absolute(network: Network) -> Network:
    return network.with_changes(path=str(Path(network.path).absolute()))


@lru_cache(maxsize=32)
def _models(
    model: str, refiner: str | None, vae: str | None, base: str | None, dtype: str, quantize: str
) -> tuple[ModelInfo, int]:
    """The info of a model with its refiner, and the bytes of their weights in a rank's memory."""
    paths = find_model_paths(model, refiner, vae, base)
    return model_info(paths), weight_bytes(paths, dtype, quantize)


def useful_ranks(spec: Spec, info: ModelInfo) -> int:
    """The largest group that ends sooner for its last rank and makes good use of all of them."""
    return _shape(geometry(spec), info)[0]


@dataclass(frozen=True, kw_only=True)
class _Needs:
    """What the jobs of one geometry need, their weights aside."""

    least_ranks: int
    most_ranks: int
    memory: list[tuple[int, int]]
    work: float


@lru_cache(maxsize=256)
def _needs(values: tuple[Any, ...], info: ModelInfo, ranks: int | None) -> _Needs:
    """Cached, because a catalog has few geometries; `values` are those of `_GEOMETRY`."""
    spec = _geometry_of(values)
    least, most = (ranks, ranks) if ranks else (1, useful_ranks(spec, info))
    memory, work = _memory(spec, info, least, most), float(_shape(spec, info)[1])
    return _Needs(least_ranks=least, most_ranks=most, memory=memory, work=work)


def _memory(spec: Spec, info: ModelInfo, least: int, most: int) -> list[tuple[int, int]]:
    """[(ranks, bytes per rank besides the weights)] for `least` ranks, four times as many, and so on up to
    `most`."""
    counts = takewhile(lambda ranks: ranks <= most, (least * 4**power for power in counting()))
    return [(ranks, max(make_plan(spec, info, ranks).stages[-1].memory_bytes)) for ranks in counts]


@lru_cache(maxsize=256)
def _shape(spec: Spec, info: ModelInfo) -> tuple[int, int]:
    """(useful ranks, work); cached, because a catalog has few geometries."""
    plan = make_plan(spec, info, 1)
    return _useful_ranks(plan), plan.work


def _useful_ranks(plan: Plan) -> int:
    most, alone = 1, _calls(plan, 1)
    with_one_less = alone
    for ranks in range(2, min(MAX_AUTO_RANKS, plan.useful_ranks) + 1):
        calls = _calls(plan, ranks)
        if calls < with_one_less and alone >= LEAST_USE * ranks * calls:
            most = ranks
        with_one_less = calls
    return most


def _calls(plan: Plan, ranks: int) -> int:
    """Model calls of the busiest of so many ranks: `Plan.model_calls` without a tiling for each number."""
    return sum(
        math.ceil(math.ceil(stage.tiling.evaluations / ranks) / stage.stage.batch) * stage.steps
        for stage in plan.stages
    )


def geometry(spec: Spec) -> Spec:
    """The spec without the fields that differ from row to row and do not change the plan."""
    return _geometry_of(_geometry_values(spec))


@lru_cache(maxsize=1024)
def _geometry_of(values: tuple[Any, ...]) -> Spec:
    return Spec(prompt="x", **dict(zip(_GEOMETRY, values, strict=True)))
