"""Tables and contact sheets of what has been measured so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from bench.quality.measures import shift_between
from bench.quality.object_counter import ObjectCounter, count, load_object_counter, shares
from bench.quality.pictures import THUMB, Cache, SaveResult
from bench.quality.rows import NATIVE_ROW, Prompt, Way
from render.builtin.data import NATIVE
from render.builtin.judge import HEADS, Judge, is_correct, load_judge
from render.output.pixels import Pixels

SHEETS = Path(__file__).parent / "sheets"
_ACROSS = 8
_LABEL = 26
_CODED = 30
"""Prompts whose photographs go through the autoencoder: what it keeps hardly differs from one to the next."""
_COUNTED = 400
"""Photographs that the counter is checked on before it counts."""
HEADER = (
    "| row | N | one subject | product | colour | backdrop | all three | detail | finest octave "
    "| seam, ratio | seam, worst | seam offset | stages' colour | decode tiles' colour | cost |",
    "|" + "---|" * 15,
)


@dataclass(frozen=True, kw_only=True)
class Eyes:
    """What looks at pictures."""

    counter: ObjectCounter
    judge: Judge

    @classmethod
    def open(cls) -> Eyes:
        return cls(counter=load_object_counter(), judge=load_judge())

    def check(self) -> str:
        """One line on how far the counter can be trusted."""
        found = shares(self.counter, _COUNTED, 2077)
        return (
            f"The counter, on {_COUNTED} fresh studio photographs: {found['one']:.1%} count as one product "
            f"(wanted >= 99 %), {found['two']:.1%} of those with a second one beside it as two, and "
            f"{found['grown together']:.1%} of those with a second one half into it."
        )


def size_lines(
    cache: Cache, ways: Sequence[Way], native: Way, asked: Sequence[Prompt], times: int, eyes: Eyes
) -> list[str]:
    """The table of one size: what the autoencoder keeps, native pictures, the same enlarged bicubically,
    then every way."""
    lines = list(HEADER)
    some = asked[:_CODED]
    coded = _detail(cache, [(prompt, cache.coded(prompt, times)) for prompt in some], times)
    lines.append(_row("studio photographs, through the autoencoder", len(some), [""] * 5, coded))
    reference = _kept(cache, native, asked, 1)
    if reference:
        lines.append(_line(NATIVE_ROW, reference, eyes, None))
        enlarged = [(prompt, cache.enlarged(prompt, native, times)) for prompt, _ in reference]
        detail = _detail(cache, [(prompt, bands) for prompt, bands in enlarged if bands], times)
        lines.append(_line("the same, enlarged bicubically", reference, eyes, detail, pixels_only=True))
    for way in ways:
        kept = _kept(cache, way, asked, times)
        if kept:
            bands = [(prompt, each.figures["bands"]) for prompt, each in kept]
            lines.append(_line(way.name, kept, eyes, _detail(cache, bands, times)))
    return lines


def _kept(cache: Cache, way: Way, asked: Sequence[Prompt], times: int) -> list[tuple[Prompt, SaveResult]]:
    found = ((prompt, cache.known(prompt, way, times)) for prompt in asked)
    return [(prompt, kept) for prompt, kept in found if kept is not None]


def _detail(
    cache: Cache, bands: Sequence[tuple[Prompt, list[float]]], times: int
) -> tuple[float, float] | None:
    """(all octaves, the finest one): mean energy over that of studio photographs of the same prompts."""
    if not bands:
        return None
    ours = np.mean([row for _, row in bands], axis=0)
    theirs = np.mean([cache.photographs(prompt, times) for prompt, _ in bands], axis=0)
    return float(ours.sum() / theirs.sum()), float(ours[-1] / theirs[-1])


def _line(
    name: str,
    kept: Sequence[tuple[Prompt, SaveResult]],
    eyes: Eyes,
    detail: tuple[float, float] | None,
    *,
    pixels_only: bool = False,
) -> str:
    seen = np.stack([each.native for _, each in kept])
    scenes = [prompt.scene for prompt, _ in kept]
    one = np.mean([number == 1 for number in count(eyes.counter, seen, [each.product for each in scenes])])
    verdicts = is_correct(eyes.judge, seen, scenes)
    together = np.logical_and.reduce(list(verdicts.values()))
    shares_right = [float(verdicts[head].mean()) for head in HEADS]
    shares = [f"{share:.1%}" for share in (one, *shares_right, together.mean())]
    return _row(
        name, len(kept), shares, detail, [] if pixels_only else _own_figures([each for _, each in kept])
    )


def _row(
    name: str,
    pictures: int,
    shares: Sequence[str],
    detail: tuple[float, float] | None,
    own: Sequence[str] = (),
) -> str:
    """A line of the table; `own` are the figures of one's own borders, stages and calls, if there are any."""
    shown = ["", ""] if detail is None else [f"{value:.3f}" for value in detail]
    return f"| {' | '.join([name, str(pictures), *shares, *shown, *(own or [''] * 6)])} |"


def _own_figures(kept: Sequence[SaveResult]) -> list[str]:
    seams = [each.figures["seams"] for each in kept]
    bordered = [seam for seam in seams if seam["borders"]]
    stages = [shift_between(np.array(each.figures["means"])) for each in kept]
    cells = ["", "", ""]
    if bordered:
        ratios, worsts, offsets = (
            np.array([seam[name] for seam in bordered]) for name in ("ratio", "worst", "offset")
        )
        cells = [
            f"{ratios.mean():.3f} (to {ratios.max():.3f})",
            f"{worsts.mean():.3f} (to {worsts.max():.3f})",
            f"{offsets.mean():.2f} (to {offsets.max():.2f})",
        ]
    moved = f"{np.mean(stages):.2f} (to {max(stages):.2f})" if any(stages) else ""
    decode = max(each.figures["decode_shift"] for each in kept)
    return [*cells, moved, f"{decode:.3f}", f"{kept[0].figures['cost']:.2f}"]


def write_sheet(cache: Cache, ways: Sequence[Way], asked: Sequence[Prompt], times: int) -> Path | None:
    """The first pictures of every way below each other; None where nothing is there yet."""
    strips = []
    for way in ways:
        kept = _kept(cache, way, asked[:_ACROSS], times)
        if kept:
            strips.append(_strip(f"{way.name}, {NATIVE * times} px", [_thumb(each) for _, each in kept]))
    if not strips:
        return None
    SHEETS.mkdir(exist_ok=True)
    target = SHEETS / f"{times}x.webp"
    Image.fromarray(np.concatenate(strips)).save(target, quality=82)
    return target


def _thumb(kept: SaveResult) -> Pixels:
    return np.asarray(Image.open(kept.thumb).convert("RGB"))


def _strip(name: str, thumbs: Sequence[Pixels]) -> NDArray[np.uint8]:
    """One row of the sheet under its name."""
    label = Image.new("RGB", (THUMB * _ACROSS, _LABEL), "white")
    ImageDraw.Draw(label).text((6, 6), name, fill="black")
    row = np.full((THUMB, THUMB * _ACROSS, 3), 255, np.uint8)
    for number, thumb in enumerate(thumbs):
        row[:, number * THUMB : (number + 1) * THUMB] = thumb
    return np.concatenate([np.asarray(label), row])
