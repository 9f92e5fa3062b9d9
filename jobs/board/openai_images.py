"""Images as programs written for OpenAI's API ask for them: generations, edits, and the list of models.

What such a program asks for is a batch like any other. The request waits for its images up to a limit; after
that the answer has status 202 and names the place to ask again.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, File, Form, Query, Request, UploadFile
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import Response

from jobs.board.batch_review import person
from jobs.board.board import Board
from jobs.board.here import Here
from jobs.board.openai_answers import Format, Named, Wanted, answer, check_pixels, image_file
from jobs.board.spec_body import SpecBody
from jobs.board.uploaded_images import keep_image, keep_mask, renamed
from jobs.db.audit import record
from jobs.db.board_queries import show_batch
from jobs.db.submission import JobOptions
from jobs.intake.options import IntakeOptions
from render.errors import BadInput
from render.spec import Spec

MAX_IMAGES = 10
MAX_WAIT_S = 600.0
WAIT_S = 55.0
"""Proxies often end a request after a minute."""
Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[\w .@/+-]+$")]
Result = Literal["url", "b64_json"]
_WITHOUT_EFFECT = "Accepted, without effect."
_OUTPUT = "How the images are answered with: a URL that is valid for an hour, or their bytes."


class Generation(BaseModel):
    """An image to generate. Fields of the spec, such as `steps`, are taken too."""

    model_config = ConfigDict(extra="allow")

    prompt: str = Field(min_length=1, max_length=20_000)
    model: str | None = Field(None, max_length=512, description="One of /v1/models.")
    n: int | None = Field(None, ge=1, le=MAX_IMAGES, description="Number of images, with seeds in a row.")
    size: str | None = Field(None, max_length=20, description="WIDTHxHEIGHT, or auto.")
    seed: int | None = Field(None, ge=0, lt=2**63, description="Of the first image; drawn unless given.")
    response_format: Result | None = Field(None, description=_OUTPUT)
    output_format: Format | None = None
    output_compression: int | None = Field(None, ge=1, le=100, description="Quality of jpeg and webp.")
    background: Literal["auto", "opaque"] | None = None
    stream: Literal[False] | None = None
    quality: str | None = Field(None, max_length=40, description=_WITHOUT_EFFECT)
    style: str | None = Field(None, max_length=40, description=_WITHOUT_EFFECT)
    moderation: str | None = Field(None, max_length=40, description=_WITHOUT_EFFECT)
    user: str | None = Field(None, max_length=256, description=_WITHOUT_EFFECT)
    queue: Name = "default"
    wait_s: float = Field(
        WAIT_S, ge=0, le=MAX_WAIT_S, description="How long to wait for the images, in seconds."
    )


_EXTENSIONS = frozenset(SpecBody.model_fields) - frozenset(Generation.model_fields)
"""Fields of the spec that a request may have beside those that OpenAI knows."""


_ANSWERS: dict[int | str, dict[str, Any]] = {
    202: {"description": "The images are not finished; `poll` is where to ask again."},
    400: {"description": "Invalid value; `error` has a message, and `param` names it."},
    404: {"description": "Unknown model or request."},
}
router = APIRouter(prefix="/v1", responses=_ANSWERS, tags=["openai"])


@router.get("/models")
def list_models(board: Here) -> dict[str, Any]:
    """The models that the farm knows by name, and those that images were made with."""
    return {"object": "list", "data": [_model(name) for name in board.model_names()]}


@router.get("/models/{model:path}")
def one_model(board: Here, model: str) -> dict[str, Any]:
    """Show one model."""
    if model not in board.model_names():
        raise BadInput("model", model[:120], "is unknown to this farm; /v1/models lists the known ones")
    return _model(model)


@router.post("/images/generations")
async def generate(board: Here, request: Request, body: Generation) -> Response:
    """Generate images. Waits for them up to `wait_s`; after that the status is 202 and `poll` a path to ask.

    `data` has a `url` or `b64_json` for each image, its `seed` and its `job`.
    """
    values = body.model_dump(include={"prompt", "model", "size", "seed"}) | _extensions(body.model_extra)
    wanted = Wanted.of(body.response_format, body.output_format, body.output_compression)
    batch = await run_in_threadpool(_submit, board, request, values, body.n, body.queue, {}, "generate")
    return await answer(board, request, batch, wanted, body.wait_s)


@router.post("/images/edits")
async def edit(
    board: Here,
    request: Request,
    prompt: Annotated[str, Form(min_length=1, max_length=20_000)],
    image: Annotated[list[UploadFile] | None, File(description="The image to edit, one file.")] = None,
    images: Annotated[list[UploadFile] | None, File(alias="image[]")] = None,
    mask: Annotated[UploadFile | None, File(description="Transparent where to paint anew.")] = None,
    model: Annotated[str | None, Form(max_length=512)] = None,
    n: Annotated[int | None, Form(ge=1, le=MAX_IMAGES)] = None,
    size: Annotated[str | None, Form(max_length=20, description="The image's own unless given.")] = None,
    seed: Annotated[int | None, Form(ge=0, lt=2**63)] = None,
    response_format: Annotated[Result | None, Form(description=_OUTPUT)] = None,
    output_format: Annotated[Format | None, Form()] = None,
    output_compression: Annotated[int | None, Form(ge=1, le=100)] = None,
    background: Annotated[Literal["auto", "opaque"] | None, Form()] = None,
    stream: Annotated[Literal["false"] | None, Form()] = None,
    quality: Annotated[str | None, Form(max_length=40, description=_WITHOUT_EFFECT)] = None,
    input_fidelity: Annotated[str | None, Form(max_length=40, description=_WITHOUT_EFFECT)] = None,
    user: Annotated[str | None, Form(max_length=256, description=_WITHOUT_EFFECT)] = None,
    queue: Annotated[str, Form(min_length=1, max_length=64, pattern=r"^[\w .@/+-]+$")] = "default",
    wait_s: Annotated[float, Form(ge=0, le=MAX_WAIT_S)] = WAIT_S,
) -> Response:
    """Edit an image: where the mask, or the image without one, is transparent, it is painted anew.

    What is opaque stays as it is, to the byte. An image without any transparency, and no mask, is changed as
    a whole, by `strength`. Fields of the spec, such as `steps`, are taken too. Answers as generations do.
    """
    sent = await request.form()
    own = {"image", "image[]", "mask", "n", "stream", "background", "input_fidelity", "output_format"}
    own |= {"output_compression", *Generation.model_fields}
    extensions = _extensions({name: value for name, value in sent.items() if name not in own})
    uploads = [*(image or ()), *(images or ())]
    if len(uploads) != 1:
        raise BadInput("image", len(uploads), "files were sent; send one image to edit")
    values = {"prompt": prompt, "model": model, "size": size, "seed": seed} | extensions
    wanted = Wanted.of(response_format, output_format, output_compression)
    batch = await run_in_threadpool(_submit_edit, board, request, values, n, queue, uploads[0], mask)
    return await answer(board, request, batch, wanted, wait_s)


@router.get("/images/generations/{id}")
async def look(
    board: Here,
    request: Request,
    id: str,
    response_format: Annotated[Result | None, Query()] = None,
    output_format: Annotated[Format | None, Query()] = None,
    output_compression: Annotated[int | None, Query(ge=1, le=100)] = None,
    wait_s: Annotated[float, Query(ge=0, le=MAX_WAIT_S)] = 0.0,
) -> Response:
    """The images of an earlier request, by the `id` of its answer; status 202 while they are not finished."""
    if not await run_in_threadpool(_was_asked_here, board, id):
        raise HTTPException(404, f"no request has the id {ascii(id)[:60]}")
    wanted = Wanted.of(response_format, output_format, output_compression)
    return await answer(board, request, id, wanted, wait_s)


@router.get("/images/files/{signed}", include_in_schema=False)
def signed_file(board: Here, signed: str) -> Response:
    """An image by the URL of an answer. Its signature stands for the token."""
    named = board.access.signed_image(signed)
    if named is None:
        raise HTTPException(404, "the address of this image is wrong or older than an hour")
    return image_file(board, Named.parse(named))


def _submit(
    board: Board,
    request: Request,
    values: Mapping[str, Any],
    number: int | None,
    queue: str,
    files: Mapping[str, Path],
    action: str,
) -> str:
    """Queue the images; returns the batch. Raises `BadInput`."""
    given = {name: value for name, value in values.items() if value is not None}
    if given.get("size") == "auto":
        del given["size"]
    given.setdefault("seed", secrets.randbits(32))
    parsed = Spec.parse(given)
    check_pixels(parsed, files.get("init"), number or 1)
    options = JobOptions(owner=person(request), queue=queue)
    intake = IntakeOptions(seeds=number or 1)
    receipt = board.submit(parsed, options, intake, files)
    with board.farm.database.write() as connection:
        record(connection, request.state.who, action, f"batch {receipt.batch}", images=len(receipt.jobs))
    return receipt.batch


def _submit_edit(
    board: Board,
    request: Request,
    values: Mapping[str, Any],
    number: int | None,
    queue: str,
    image: UploadFile,
    mask: UploadFile | None,
) -> str:
    with tempfile.TemporaryDirectory(prefix="chorale-edit-") as folder:
        files = {"init": keep_image(image, Path(folder), "image")}
        if mask is not None:
            files["mask"] = keep_mask(mask, Path(folder))
        if values.get("size") not in (None, "auto") and "fit" not in values:
            # A size of another shape than the image's, for which theirs has no word.
            values = {**values, "fit": "crop"}
        try:
            return _submit(board, request, values, number, queue, files, "edit")
        except BadInput as exc:
            for field, path, upload in (("image", files["init"], image), ("mask", files.get("mask"), mask)):
                if path is not None and upload is not None and str(exc.value) == str(path):
                    raise renamed(exc, field, path, upload) from exc
            raise


def _extensions(more: Mapping[str, Any] | None) -> dict[str, Any]:
    """The fields of the spec among what OpenAI does not know. Raises `BadInput` for anything else."""
    unknown = next((name for name in more or () if name not in _EXTENSIONS), None)
    if unknown is not None:
        raise BadInput(str(unknown)[:60], None, "is unknown; leave it out")
    return dict(more or {})


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "chorale"}


def _was_asked_here(board: Board, batch: str) -> bool:
    with board.farm.database.read() as connection:
        try:
            show_batch(connection, batch)
        except BadInput:
            return False
    return True
