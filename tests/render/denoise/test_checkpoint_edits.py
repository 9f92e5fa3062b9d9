"""A checkpoint that differs from the saved one in anything is told of, and the image begins anew."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from render.denoise.checkpoint import KEY, Checkpoint, CheckpointUnusable, identity_of
from tests.render.denoise.test_checkpoint import CPU, SPEC, Ranks, root_of

Edit = Callable[[dict[str, Any], dict[str, torch.Tensor]], None]


def _edited(data: bytes, edit: Edit) -> bytes:
    """The checkpoint with other values, written as carefully as the first one."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    info, tensors = json.loads(header["__metadata__"]["chorale"]), load(data)
    edit(info, tensors)
    return save({name: each.contiguous() for name, each in tensors.items()}, {"chorale": json.dumps(info)})


def _set(name: str, value: object) -> Edit:
    return lambda info, tensors: info.update({name: value})


def _reshape(info: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    tensors["planes"] = tensors["planes"].transpose(2, 3).reshape(tensors["planes"].shape)


def _turn(info: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    planes = tensors["planes"]
    tensors["planes"] = planes.reshape(*planes.shape[:2], planes.shape[3], planes.shape[2])


EDITS: dict[str, Edit] = {
    "step": lambda info, tensors: info.update(step=info["step"] - 1),
    "stage": lambda info, tensors: info.update(stage=info["stage"] - 1),
    "step -5": _set("step", -5),
    "stage 99": _set("stage", 99),
    "step as text": _set("step", "3"),
    "step as a number with a point": _set("step", 3.0),
    "step true": _set("step", True),
    "history": _set("heard", 1),
    "history 10**400": _set("heard", 10**400),
    "reference": lambda info, tensors: info.update(anchored=not info["anchored"]),
    "identity": _set("identity", 5),
    "another key": _set("more", 1),
    "no seal": lambda info, tensors: info.update(seal=None),
    "other planes": _reshape,
    "another shape": _turn,
    "another type": lambda info, tensors: tensors.update(planes=tensors["planes"].double()),
    "state": lambda info, tensors: tensors.update(said=torch.zeros(7, dtype=torch.float16)),
    "no state": lambda info, tensors: tensors.update(said=tensors.pop("planes")),
}


@pytest.fixture(scope="module")
def stopped() -> bytes:
    image = Ranks(SPEC)
    assert image.render(2, stop_after=8) is None
    return image.sink.files[KEY]


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_checkpoint_is_told_of_and_the_image_begins_anew(
    edit: str, stopped: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    image = Ranks(SPEC)
    image.sink.files[KEY] = _edited(stopped, EDITS[edit])
    with caplog.at_level(logging.WARNING):
        assert image.render(1) == root_of(SPEC)
    assert "the image begins anew" in caplog.text
    undisturbed = Ranks(SPEC)
    undisturbed.render(1)
    assert image.steps == undisturbed.steps


@pytest.mark.parametrize(
    "edit", ["step -5", "stage 99", "history", "reference", "another shape", "another type"]
)
def test_values_that_fit_no_plan_are_refused_with_a_right_checksum_too(
    edit: str, stopped: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """As of a version that would write them."""

    def sealed_again(data: bytes) -> bytes:
        info, tensors = _info(data), load(data)
        canvas = Checkpoint.unpack(stopped, info["identity"]).canvas
        other = replace(
            canvas,
            step=info["step"],
            planes=tensors["planes"],
            history=info["heard"],
            has_reference=info["anchored"],
        )
        return Checkpoint(stage=info["stage"], canvas=other).pack(info["identity"])

    image = Ranks(SPEC)
    image.sink.files[KEY] = sealed_again(_edited(stopped, EDITS[edit]))
    with caplog.at_level(logging.WARNING):
        assert image.render(2) == root_of(SPEC)
    assert "the image begins anew" in caplog.text


def test_a_checkpoint_of_an_earlier_version_is_continued_from(stopped: bytes) -> None:
    image = Ranks(SPEC)
    image.sink.files[KEY] = _edited(stopped, lambda info, tensors: info.pop("seal") and None)
    assert image.render(3) == root_of(SPEC)
    undisturbed = Ranks(SPEC)
    undisturbed.render(1)
    assert image.steps == undisturbed.steps - 8


def test_no_flipped_byte_is_continued_from(stopped: bytes) -> None:
    identity = identity_of(SPEC.digest("toy"), CPU)
    header, random = 8 + int.from_bytes(stopped[:8], "little"), Random(20)
    places = [*range(header), *(random.randrange(header, len(stopped)) for _ in range(100))]
    for place in places:
        flipped = bytearray(stopped)
        flipped[place] ^= 1 << random.randrange(8)
        try:
            found = Checkpoint.unpack(bytes(flipped), identity)
        except CheckpointUnusable:
            continue
        # Blanks of the header's end, which stand for nothing.
        assert found.pack(identity) == stopped, place


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"__metadata__": 5}', "[]", '{"__metadata__": {"chorale": "[]"}}', ""]
)
def test_a_header_of_anything_is_refused(text: str) -> None:
    data = len(text).to_bytes(8, "little") + text.encode()
    with pytest.raises(CheckpointUnusable):
        Checkpoint.unpack(data, "x")


def _info(data: bytes) -> dict[str, Any]:
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    found: dict[str, Any] = json.loads(header["__metadata__"]["chorale"])
    return found
