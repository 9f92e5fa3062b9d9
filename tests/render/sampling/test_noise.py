"""Noise belongs to a place on the canvas, whoever asks for it."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from render.plan.geometry import Rect
from render.sampling.noise import _philox, normal


@given(
    y=st.integers(0, 40),
    x=st.integers(0, 40),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    channels=st.integers(1, 9),
    seed=st.integers(0, 2**63 - 1),
)
def test_a_crop_of_the_noise_is_the_noise_of_the_crop(
    y: int, x: int, height: int, width: int, channels: int, seed: int
) -> None:
    whole = normal(seed, 2, 5, channels, Rect(y=0, x=0, height=60, width=60))
    part = normal(seed, 2, 5, channels, Rect(y=y, x=x, height=height, width=width))
    assert np.array_equal(whole[:, y : y + height, x : x + width], part)


def test_noise_is_standard_normal_and_white() -> None:
    values = normal(7, 0, 0, 8, Rect(y=0, x=0, height=256, width=256))
    assert abs(values.mean()) < 0.01 and abs(values.std() - 1) < 0.01
    for axis in (0, 1, 2):
        shifted = np.roll(values, 1, axis=axis)
        assert abs((values * shifted).mean()) < 0.01


def test_every_key_changes_all_of_it() -> None:
    box = Rect(y=3, x=4, height=8, width=8)
    draws = [normal(*key, 4, box) for key in ((7, 0, 0), (8, 0, 0), (7 + 2**40, 0, 0), (7, 1, 0), (7, 0, 1))]
    for one in range(len(draws)):
        for two in range(one):
            assert not np.isclose(draws[one], draws[two]).any()


def test_philox_gives_the_published_answers() -> None:
    """Known answers of Random123's `kat_vectors` for philox4x32-10."""

    def words(counter: list[int], seed: int) -> list[int]:
        return [int(word[0]) for word in _philox([np.array([c], np.uint64) for c in counter], seed)]

    assert words([0, 0, 0, 0], 0) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    ones = 0xFFFFFFFF
    assert words([ones] * 4, (ones << 32) | ones) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
