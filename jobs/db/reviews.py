"""Reviews: what several people say of a batch's images, and what that comes to.

Each reviewer has a row of their own for each image, so no vote replaces another person's. An image is kept
when somebody keeps it and nobody rejects it, rejected when somebody rejects it and nobody keeps it, and
disputed when both happen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, case, func, select

from infra.database import insert_or_change, now
from jobs.db.board_queries import SUMMARY
from jobs.db.names import check_name
from jobs.db.tables import batches, entries, image_checks, jobs, reviews
from jobs.errors import LostRace
from render.errors import BadInput

VERDICTS = ("keep", "reject")
SETS = ("unreviewed", "kept", "rejected", "disputed", "flagged", "starred")
"""What images of a batch can be chosen by. `flagged`: the quality gate has found something, and nobody has
said anything yet."""
MAX_TEXT = 2000
_CHUNK = 400


@dataclass(frozen=True, kw_only=True)
class Review:
    """What one reviewer says of an image; what is None stays as that reviewer left it.

    `verdict` is one of `VERDICTS`, or "" to take one's own back. Raises `BadInput`.
    """

    verdict: str | None = None
    reason: str | None = None
    note: str | None = None
    starred: bool | None = None

    def __post_init__(self) -> None:
        if self.verdict not in (None, "", *VERDICTS):
            raise BadInput("verdict", self.verdict, f"is unknown; use {' or '.join(VERDICTS)}")
        for name, text in (("reason", self.reason), ("note", self.note)):
            if text is not None and len(text) > MAX_TEXT:
                raise BadInput(name, text[:60], f"has {len(text)} characters; use at most {MAX_TEXT}")
        if not self.values:
            raise BadInput("review", None, "says nothing; give a verdict, a note or a star")

    @property
    def values(self) -> dict[str, Any]:
        """The columns that change. A verdict without a reason also removes the reason of the one before."""
        given = {"verdict": self.verdict, "reason": self.reason, "note": self.note, "starred": self.starred}
        if self.verdict is not None and self.reason is None:
            given["reason"] = ""
        return {
            name: _stored(value) if isinstance(value, str) else value
            for name, value in given.items()
            if value is not None
        }


def _stored(text: str) -> str:
    """Text that every database takes: without null bytes and lone surrogates."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()


def review_document(row: dict[str, Any]) -> dict[str, Any]:
    """An image of a batch as JSON has it."""
    names = ("row", "custom_id", "state", "verdict", "stars", "flaws", "votes", "prompt", "root")
    return {"job": row["id"]} | {name: row[name] for name in names}


def _votes(batch: str, rows: tuple[int, int] | None) -> Any:
    """A row for each image that was voted on: how often it is kept, rejected and starred. Of all rows of the
    batch, or of those from the first to the last one of `rows`."""
    within = [] if rows is None else [reviews.c.row.between(*rows)]
    return (
        select(
            reviews.c.batch,
            reviews.c.row,
            reviews.c.job,
            func.sum(case((reviews.c.verdict == "keep", 1), else_=0)).label("keeps"),
            func.sum(case((reviews.c.verdict == "reject", 1), else_=0)).label("rejects"),
            func.sum(case((reviews.c.starred, 1), else_=0)).label("stars"),
        )
        .where(reviews.c.batch == batch, *within)
        .group_by(reviews.c.batch, reviews.c.row, reviews.c.job)
        .subquery("votes")
    )


class _Columns:
    """The expressions over one image's votes and checks."""

    def __init__(self, batch: str, rows: tuple[int, int] | None = None) -> None:
        self._batch = batch
        self.votes = _votes(batch, rows)
        self.keeps = func.coalesce(self.votes.c.keeps, 0)
        self.rejects = func.coalesce(self.votes.c.rejects, 0)
        self.stars = func.coalesce(self.votes.c.stars, 0)
        self.verdict = case(
            (and_(self.keeps > 0, self.rejects > 0), "disputed"),
            (self.rejects > 0, "rejected"),
            (self.keeps > 0, "kept"),
            else_="unreviewed",
        )
        self.flawed = func.coalesce(image_checks.c.flawed, False)

    def within(self, statement: Select[Any]) -> Select[Any]:
        """A statement over entries and jobs, with what is known of their images."""
        mine = and_(
            self.votes.c.batch == entries.c.batch,
            self.votes.c.row == entries.c.row,
            self.votes.c.job == entries.c.job,
        )
        return (
            statement.select_from(entries)
            .join(jobs, jobs.c.id == entries.c.job)
            .outerjoin(self.votes, mine)
            .outerjoin(image_checks, image_checks.c.job == entries.c.job)
            .where(entries.c.batch == self._batch)
        )

    def is_in(self, chosen: str) -> ColumnElement[bool]:
        """Whether an image belongs to one of the `SETS`; raises `BadInput`."""
        if chosen not in SETS:
            raise BadInput("verdict", chosen[:60], f"is unknown; use one of {', '.join(SETS)}")
        if chosen == "starred":
            return self.stars > 0
        if chosen == "flagged":
            return and_(self.flawed, self.verdict == "unreviewed")
        return and_(self.verdict == chosen, jobs.c.state == "done")


def review_rows(
    connection: Connection,
    batch: str,
    limit: int | None = None,
    after: int = -1,
    chosen: str | None = None,
    images: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Rows of a batch after row `after`, in order: custom_id, job, verdict, stars, flaws and votes.
    `checked` says whether the quality gate has seen the image.

    `chosen` is one of `SETS`; `images` are custom ids, where only those are wanted.
    """
    page = None if chosen or images else _page(connection, batch, limit, after)
    columns = _Columns(batch, page)
    statement = columns.within(
        select(
            entries.c.row,
            entries.c.custom_id,
            *SUMMARY,
            columns.verdict.label("verdict"),
            columns.stars.label("stars"),
            image_checks.c.flaws,
        )
    ).where(entries.c.row > after)
    if chosen:
        statement = statement.where(columns.is_in(chosen))
    if images:
        statement = statement.where(entries.c.custom_id.in_(images))
    found = connection.execute(statement.order_by(entries.c.row).limit(limit))
    rows = [
        dict(row._mapping) | {"flaws": row.flaws or [], "checked": row.flaws is not None, "votes": []}
        for row in found
    ]
    by_place = {(row["row"], row["id"]): row for row in rows}
    for vote in _votes_of(connection, batch, rows):
        place = by_place.get((vote.pop("row"), vote.pop("job")))
        if place is not None:
            place["votes"].append(vote)
    return rows


def _page(connection: Connection, batch: str, limit: int | None, after: int) -> tuple[int, int] | None:
    """The first and the last row of a page, so that only its votes are counted; None for all that is left."""
    if limit is None:
        return None
    mine = select(entries.c.row).where(entries.c.batch == batch, entries.c.row > after)
    rows = connection.execute(mine.order_by(entries.c.row).limit(limit)).scalars().all()
    return (rows[0], rows[-1]) if rows else None


def _votes_of(connection: Connection, batch: str, rows: Sequence[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    if not rows:
        return
    columns = ("row", "job", "reviewer", "verdict", "reason", "note", "starred", "changed")
    statement = select(*(reviews.c[name] for name in columns)).where(
        reviews.c.batch == batch, reviews.c.row >= rows[0]["row"], reviews.c.row <= rows[-1]["row"]
    )
    for vote in connection.execute(statement.order_by(reviews.c.changed, reviews.c.reviewer)):
        yield dict(vote._mapping)


def review_counts(connection: Connection, batch: str) -> dict[str, int]:
    """How many finished images of a batch each of the `SETS` has. Raises `BadInput` for an unknown batch."""
    if connection.execute(select(batches.c.id).where(batches.c.id == batch)).first() is None:
        raise BadInput("batch", batch[:60], "is unknown; chorale batches shows the known ones")
    return batch_counts(connection, batch)[1]


def batch_counts(connection: Connection, batch: str) -> tuple[dict[str, int], dict[str, int]]:
    """The jobs of a batch by state, and what `review_counts` gives: both by looking at each image once."""
    columns = _Columns(batch)
    kind = columns.within(
        select(
            jobs.c.state,
            columns.verdict.label("verdict"),
            (columns.stars > 0).label("starred"),
            columns.flawed.label("flawed"),
        )
    ).subquery()
    counted = select(*kind.c, func.count().label("images")).group_by(*kind.c)
    states, sets = Counter[str](), Counter[str](dict.fromkeys(SETS, 0))
    for row in connection.execute(counted):
        states[row.state] += row.images
        if row.state == "done":
            sets[row.verdict] += row.images
        sets["starred"] += row.images if row.starred else 0
        sets["flagged"] += row.images if row.flawed and row.verdict == "unreviewed" else 0
    return dict(states), dict(sets)


@dataclass(frozen=True)
class Named:
    """An image of a batch by its custom id. `job` is what the reviewer has seen, if that is known."""

    custom_id: str
    job: str | None = None


def record_review(
    connection: Connection, batch: str, images: Sequence[Named], reviewer: str, review: Review
) -> list[dict[str, Any]]:
    """Record what one reviewer says of some images. Returns the images as `review_rows` has them.

    Raises `BadInput` for an image that the batch does not have or that is not finished, and `LostRace` for
    one that was re-rolled since the reviewer saw it. Nothing is recorded then.
    """
    check_name("reviewer", reviewer, reviews.c.reviewer)
    found = _entries_of(connection, batch, [image.custom_id for image in images])
    for image in images:
        _check_seen(found.get(image.custom_id), image)
    values = review.values | {"changed": now()}
    for row in found.values():
        new = {"verdict": "", "reason": "", "note": "", "starred": False} | values
        key = {"batch": batch, "row": row.row, "job": row.job, "reviewer": reviewer}
        connection.execute(insert_or_change(connection, reviews, values).values(**key, **new))
    names = list(found)
    parts = [names[start : start + _CHUNK] for start in range(0, len(names), _CHUNK)]
    return [row for part in parts for row in review_rows(connection, batch, images=part)]


def _entries_of(connection: Connection, batch: str, names: Sequence[str]) -> dict[str, Any]:
    """By custom id: the row, the job and its state. They cannot be re-rolled until the transaction ends."""
    check_custom_ids(names)
    found: dict[str, Any] = {}
    for start in range(0, len(names), _CHUNK):
        statement = (
            select(entries.c.custom_id, entries.c.row, entries.c.job, jobs.c.state)
            .join(jobs, jobs.c.id == entries.c.job)
            .where(entries.c.batch == batch, entries.c.custom_id.in_(names[start : start + _CHUNK]))
            .order_by(entries.c.row)
            .with_for_update(of=entries)
        )
        found |= {row.custom_id: row for row in connection.execute(statement)}
    return found


def check_custom_ids(names: Sequence[str]) -> None:
    """Raise `BadInput` for what is no custom id in any batch, and would be an error in some databases."""
    for name in names:
        if not name.isprintable():
            raise BadInput("images", ascii(name)[:80], "is no image of this batch; use its custom_id")


def _check_seen(found: Any, image: Named) -> None:
    if found is None:
        raise BadInput("images", image.custom_id[:80], "is no image of this batch; use its custom_id")
    if image.job is not None and image.job != found.job:
        raise LostRace(f"image {image.custom_id} was re-rolled meanwhile; look at the new one")
    if found.state != "done":
        raise BadInput("images", image.custom_id[:80], f"is {found.state}; review it when it is done")
