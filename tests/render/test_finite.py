"""A NaN is told with its place and what to do, and a farm does not try it again."""

from __future__ import annotations

import pytest
import torch

from jobs.node.attempt_runner import _tally
from render.errors import GroupFailed, NoImage, NotFinite, exit_code
from render.finite import check_autoencoder, check_prediction
from render.launch.rank_events import failure_event
from render.launch.rank_group import group_failed
from render.output.decode import _in_bits

BROKEN = [float("nan"), float("inf"), float("-inf")]


@pytest.mark.parametrize("value", BROKEN)
@pytest.mark.parametrize(
    ("dtype", "fix"), [("float16", "bfloat16"), ("bfloat16", "--dtype float32"), ("float32", "damaged")]
)
def test_a_prediction_that_is_not_finite_names_its_step_and_a_fix(value: float, dtype: str, fix: str) -> None:
    predictions = torch.zeros(2, 4, 8, 8)
    check_prediction(predictions, 3, 1, dtype)
    predictions[1, 2, 3, 4] = value
    with pytest.raises(NotFinite, match=f"at step 3 of stage 1, in {dtype}; .*{fix}"):
        check_prediction(predictions, 3, 1, dtype)


@pytest.mark.parametrize("value", BROKEN)
def test_pixels_that_are_not_finite_are_never_bytes(value: float) -> None:
    pixels = torch.full((3, 4, 4), 0.5)
    assert _in_bits(pixels.clone(), 8).max() == 128
    pixels[0, 0, 0] = value
    for depth in (8, 16):
        with pytest.raises(NotFinite, match=r"autoencoder .* when it decoded the image; try --dtype float32"):
            _in_bits(pixels.clone(), depth)
    with pytest.raises(NotFinite, match="when it began stage 2"):
        check_autoencoder(pixels, "when it began stage 2")


def test_it_fails_its_job_at_once_on_a_farm() -> None:
    for error in (NotFinite("x"), NoImage("flat")):
        failed = group_failed(failure_event(error))
        assert failed.permanent and _tally(failed) == "permanent" and exit_code(failed) == 3
    assert _tally(GroupFailed("out of memory")) == "attempts"
