"""Programs that were written for OpenAI's API: its real client generates, edits and lists on a real farm."""

from __future__ import annotations

import base64
import io
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
from numpy.typing import NDArray
from openai import OpenAI
from PIL import Image

from infra.store.local import LocalStore
from jobs.models.catalog import ModelCatalog
from render.models.folder import resolve_model
from tests.jobs.board.conftest import OPERATOR, VIEWER, SmallFarm
from tests.support.board import RunningBoard
from tests.support.cli import wait_until

QUICK: dict[str, Any] = {"steps": 2, "wait_s": 300}
SIZE = "320x192"


@pytest.fixture
def client(small_farm: SmallFarm) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{small_farm.board.address}v1", api_key="none", max_retries=0) as opened:
        yield opened


def on(board: RunningBoard, token: str) -> OpenAI:
    return OpenAI(base_url=f"{board.address}v1", api_key=token, max_retries=0)


def pixels(data: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def png(image: Image.Image) -> bytes:
    held = io.BytesIO()
    image.save(held, "PNG")
    return held.getvalue()


def decoded(image: openai.types.Image) -> bytes:
    assert image.b64_json is not None
    return base64.b64decode(image.b64_json)


def test_images_are_generated_and_are_those_of_the_farm(client: OpenAI, small_farm: SmallFarm) -> None:
    more = QUICK | {"seed": 41}
    made = client.images.generate(
        prompt="a red vase", size=SIZE, n=2, response_format="b64_json", extra_body=more
    )
    assert made.data is not None and made.model_extra is not None
    assert [image.model_extra["seed"] for image in made.data if image.model_extra] == [41, 42]
    for image, job in zip(made.data, made.model_extra["jobs"], strict=True):
        shown = small_farm.board.ask(f"/api/v1/jobs/{job}").json
        assert (shown["state"], shown["spec"]["steps"], shown["spec"]["prompt"]) == ("done", 2, "a red vase")
        # The image is smaller than a tile: the only one of the largest level is all of it.
        tile = small_farm.board.ask(f"/jobs/{job}/image/image_files/9/0_0.png").body
        assert np.array_equal(pixels(decoded(image)), pixels(tile))
    again = client.images.generate(
        prompt="a red vase", size=SIZE, response_format="b64_json", extra_body=more
    )
    assert again.data is not None and decoded(again.data[0]) == decoded(made.data[0])


def test_a_url_needs_no_token_and_ends_with_its_signature(client: OpenAI) -> None:
    made = client.images.generate(
        prompt="a red vase", size=SIZE, output_format="webp", extra_body=QUICK | {"seed": 41}
    )
    assert made.data is not None and made.data[0].url is not None
    with urllib.request.urlopen(made.data[0].url, timeout=60) as answer:
        assert answer.headers["content-type"] == "image/webp"
        assert pixels(answer.read()).shape == (192, 320, 3)
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(made.data[0].url[:-3] + "abc", timeout=60)


@pytest.mark.parametrize("with_mask", [True, False], ids=["mask", "transparency"])
def test_what_is_opaque_stays_when_an_image_is_edited(client: OpenAI, with_mask: bool) -> None:
    drawn = np.random.default_rng(3).integers(0, 256, (192, 320, 3), dtype=np.uint8)
    alpha = np.full((192, 320), 255, np.uint8)
    alpha[:, :160] = 0
    transparent = Image.fromarray(np.dstack([drawn, alpha]))
    image = Image.fromarray(drawn) if with_mask else transparent
    more = {"mask": ("mask.png", png(transparent))} if with_mask else {}
    made = client.images.edit(
        image=("room.png", png(image)),
        prompt="a red vase",
        response_format="b64_json",
        extra_body=QUICK | {"seed": 5},
        **more,  # type: ignore[arg-type]
    )
    assert made.data is not None
    found = pixels(decoded(made.data[0]))
    assert np.array_equal(found[:, 160:], drawn[:, 160:])
    assert not np.array_equal(found[:, :160], drawn[:, :160])


def test_a_request_that_does_not_wait_is_told_where_to_look(client: OpenAI, small_farm: SmallFarm) -> None:
    raw = client.images.with_raw_response.generate(
        prompt="a blue vase", size=SIZE, response_format="b64_json", extra_body={"steps": 2, "wait_s": 0}
    )
    found = raw.parse()
    assert raw.status_code == 202 and found.data == [] and found.model_extra is not None
    poll = found.model_extra["poll"]
    assert raw.headers["location"] == poll
    answer = wait_until(lambda: (got := small_farm.board.ask(poll)).status == 200 and got, 300)
    assert base64.b64decode(answer.json["data"][0]["b64_json"])


def test_models_are_listed(client: OpenAI, small_farm: SmallFarm) -> None:
    catalog = ModelCatalog(LocalStore(small_farm.board.log.parent / "chorale" / "images"))
    brand = catalog.add("brand", resolve_model("builtin"), "builtin", "anna")

    def listed() -> set[str]:
        return {model.id for model in client.models.list().data}

    # The board looks again after some seconds.
    wait_until(lambda: {"builtin", "brand"} <= listed(), 60)
    assert client.models.retrieve("brand").id == "brand"
    catalog.forget(brand, catalog.models())
    wait_until(lambda: "brand" not in listed(), 60)
    assert client.models.retrieve("builtin").owned_by == "chorale"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-image-1")


@pytest.mark.parametrize(
    ("wanted", "kind", "param", "part"),
    [
        ({"size": "100x100"}, openai.BadRequestError, "width", "multiple of 8"),
        ({"size": "8192x8192"}, openai.BadRequestError, "size", "40 megapixels"),
        ({"n": 11}, openai.BadRequestError, "n", "less than or equal to 10"),
        ({"model": "gpt-image-1"}, openai.NotFoundError, "model", "new to this farm"),
        ({"stream": True}, openai.BadRequestError, "stream", "false"),
        ({"extra_body": {"colour": "red"}}, openai.BadRequestError, "colour", "unknown"),
        ({"extra_body": {"init": "/etc/passwd"}}, openai.BadRequestError, "init", "unknown"),
        ({"extra_body": {"steps": 0}}, openai.BadRequestError, "steps", "steps: 0"),
    ],
)
def test_mistakes_have_openai_s_shape(
    client: OpenAI,
    small_farm: SmallFarm,
    wanted: dict[str, Any],
    kind: type[openai.APIStatusError],
    param: str,
    part: str,
) -> None:
    before = small_farm.board.ask("/api/v1/batches").json
    with pytest.raises(kind, match=part) as refused:
        client.images.generate(prompt="a vase", **wanted)
    assert (refused.value.param, refused.value.type) == (param, "invalid_request_error")
    assert small_farm.board.ask("/api/v1/batches").json == before


@pytest.mark.parametrize(
    ("files", "param", "part"),
    [
        ({"image": ("a.png", b"no image")}, "image", "a.png"),
        ({"image": [("a.png", b"1"), ("b.png", b"2")]}, "image", "send one image"),
        (
            {"image": ("a.png", png(Image.new("RGB", (64, 64)))), "mask": ("m.png", b"no image")},
            "mask",
            "m.png",
        ),
        (
            {
                "image": ("a.png", png(Image.new("RGB", (64, 64)))),
                "mask": ("m.png", png(Image.new("RGB", (64, 64)))),
            },
            "mask",
            "no transparency",
        ),
    ],
)
def test_files_that_cannot_be_edited_are_told_by_their_names(
    client: OpenAI, files: dict[str, Any], param: str, part: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=part) as refused:
        client.images.edit(prompt="a vase", **files)
    assert refused.value.param == param and "/tmp" not in str(refused.value)


def test_the_token_decides_who_may_generate(locked: RunningBoard) -> None:
    with pytest.raises(openai.AuthenticationError) as refused, on(locked, "wrong") as stranger:
        stranger.models.list()
    assert refused.value.code == "invalid_api_key"
    with on(locked, VIEWER) as viewer:
        assert viewer.models.list().data
        with pytest.raises(openai.PermissionDeniedError):
            viewer.images.generate(prompt="a vase")
    with on(locked, OPERATOR) as operator:
        # No node is there, so that nothing is waited for.
        made = operator.images.generate(prompt="a vase", size=SIZE)
    assert made.data == [] and made.model_extra is not None and made.model_extra["status"] == "queued"
    known = {"authorization": f"Bearer {OPERATOR}"}
    acts = locked.ask("/api/v1/audit?action=generate", **known).json["acts"]
    assert acts[0]["target"] == f"batch {made.model_extra['id']}"
    job = made.model_extra["jobs"][0]
    assert locked.ask(f"/api/v1/jobs/{job}/cancel", "POST", **known).status == 200
    with on(locked, OPERATOR) as operator, pytest.raises(openai.ConflictError, match="was cancelled"):
        operator.get(made.model_extra["poll"].removeprefix("/v1"), cast_to=object)
