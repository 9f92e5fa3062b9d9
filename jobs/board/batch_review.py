"""Reviews over HTTP: the verdicts of a batch, votes, re-rolls. The pages' scripts use the same routes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from jobs.board.access import is_person
from jobs.board.board import WHO, Board
from jobs.board.here import Here
from jobs.db.reviews import (
    MAX_TEXT,
    SETS,
    Named,
    Review,
    record_review,
    review_counts,
    review_document,
    review_rows,
)
from jobs.review.reroll import Asked, Changes, Replaced, reroll

Set = Literal["unreviewed", "kept", "rejected", "disputed", "flagged", "starred"]
assert set(Set.__args__) == set(SETS)  # type: ignore[attr-defined]
CustomId = Annotated[str, Field(min_length=1, max_length=256)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ImageOfBatch(_Strict):
    """An image by its custom id, with the job whose image was looked at."""

    custom_id: CustomId
    job: str | None = Field(
        None, max_length=32, description="Refused with 409 if the image was re-rolled since."
    )


class ReviewBody(_Strict):
    """What one reviewer says of some images; what is omitted stays as it is."""

    images: list[CustomId | ImageOfBatch] = Field(min_length=1, max_length=1000)
    verdict: Literal["keep", "reject", ""] | None = Field(None, description="Empty: no verdict any more.")
    reason: str | None = Field(None, max_length=MAX_TEXT)
    note: str | None = Field(None, max_length=MAX_TEXT)
    starred: bool | None = None
    reviewer: str | None = Field(
        None, min_length=1, max_length=128, description="Ignored where the token has a name."
    )


class RerollBody(_Strict):
    """Which images are rendered again, and what changes."""

    images: list[CustomId] | None = Field(
        None, max_length=1000, description="All rejected ones unless given."
    )
    prompt: str | None = Field(None, max_length=20_000, description="`{prompt}` stands for the old one.")
    negative_prompt: str | None = Field(None, max_length=20_000)
    keep_seed: bool = Field(False, description="Keep the seeds; only with another prompt.")


_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"description": "Invalid value; `error` names it and the fix."},
    404: {"description": "Not found."},
    409: {"description": "The image was re-rolled meanwhile."},
}
router = APIRouter(prefix="/api/v1", responses=_ERRORS)


def person(request: Request, given: str | None = None) -> str:
    """Who sends a request: whom its token was given to, else the name that is given."""
    name: str = request.state.name
    return name if is_person(name) else given or name or WHO


@router.get("/batches/{batch}/review", tags=["review"])
def show_reviews(
    board: Here,
    batch: str,
    verdict: Annotated[Set | None, Query()] = None,
    after: Annotated[int, Query(ge=-1, le=2**31 - 1)] = -1,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> dict[str, Any]:
    """List a page of a batch's images: verdict, votes, stars, and the flaws that the quality gate has found.

    `after` is the last row of the page before. `counts` is how many finished images each verdict has; `next`
    is the `after` of the next page, or null.
    """
    with board.farm.database.read() as connection:
        counts = review_counts(connection, batch)
        rows = review_rows(connection, batch, limit + 1, after, verdict)
    images = [review_document(row) for row in rows[:limit]]
    following = images[-1]["row"] if len(rows) > limit else None
    return {"batch": batch, "counts": counts, "images": images, "next": following}


@router.post("/batches/{batch}/review", tags=["review"])
def review_images(board: Here, request: Request, batch: str, body: ReviewBody) -> dict[str, Any]:
    """Keep, reject, star or annotate images of a batch. Each reviewer has a vote of their own."""
    named = [
        Named(each) if isinstance(each, str) else Named(each.custom_id, each.job) for each in body.images
    ]
    review = Review(verdict=body.verdict, reason=body.reason, note=body.note, starred=body.starred)
    with board.farm.database.write() as connection:
        review_counts(connection, batch)
        rows = record_review(connection, batch, named, person(request, body.reviewer), review)
    return {"batch": batch, "images": [review_document(row) for row in rows]}


@router.post("/batches/{batch}/reroll", tags=["review"])
def reroll_batch(board: Here, request: Request, batch: str, body: RerollBody) -> dict[str, Any]:
    """Render images again with other seeds or another prompt, in the same batch and under the same ids."""
    changes = Changes(prompt=body.prompt, negative_prompt=body.negative_prompt, keep_seed=body.keep_seed)
    replaced = reroll_images(board, batch, body.images, changes, request)
    images = [{"custom_id": e.custom_id, "old": e.old, "job": e.job, "seed": e.seed} for e in replaced]
    return {"batch": batch, "images": images}


def reroll_images(
    board: Board, batch: str, images: Sequence[str] | None, changes: Changes, request: Request
) -> list[Replaced]:
    """Re-roll the given images of a batch, or all rejected ones. Raises `BadInput`."""
    with board.farm.database.read() as connection:
        review_counts(connection, batch)
        if images is None:
            images = [row["custom_id"] for row in review_rows(connection, batch, chosen="rejected")]
    if not images:
        return []
    asked = Asked(by=person(request), audited_as=request.state.who)
    return reroll(board.farm.database, board.store(), batch, images, changes, asked)
