"""Renders one picture in one way and keeps what is measured of it under its spec's digest, once for ever."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from bench.quality.measures import band_energies, small
from bench.quality.rows import Prompt, Way
from render.builtin.data import NATIVE
from render.builtin.studio import photo
from render.canvas import LatentRegion
from render.denoise.stage_loop import StageLoop
from render.denoise.upscaling import first_canvas
from render.distributed import SingleRankGroup
from render.engine import Denoised, render_latents
from render.models import Adapter
from render.models.adapter import WindowPlace
from render.output.decode import block_decoder
from render.output.pixels import Pixels
from render.output.preview import Preview
from render.output.pyramid import publish_pyramid
from render.output.seams import seam_score
from render.plan.geometry import Rect
from render.plan.plan import StagePlan, make_plan
from render.plan.stages import make_stages
from render.plan.tile_grid import even_grid
from render.sink import Sink
from render.spec import Spec

CPU = torch.device("cpu")
THUMB = 224
"""Side of a picture on a contact sheet, in pixels."""
PHOTOGRAPHS = 2
"""Studio photographs of each prompt that its picture's detail is held against."""
_VERSION = 1
"""Of what is measured; another one measures everything again."""


@dataclass
class Stages:
    """In place of a preview: keeps the mean colour of every finished stage but the last, in grey levels."""

    means: list[list[float]] = field(default_factory=list)

    def wants(self, stage: StagePlan) -> bool:
        return True

    def show(self, finished: LatentRegion, adapter: Adapter, device: torch.device) -> None:
        self.means.append(_mean(_whole(finished, adapter)))


class _Nowhere:
    """The pyramid's tiles, in memory."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def put(self, key: str, data: bytes, content_type: str, immutable: bool = False) -> None:
        self.files[key] = data


@dataclass(frozen=True, kw_only=True)
class SaveResult:
    """What is known of one picture."""

    figures: dict[str, Any]
    native: Pixels
    """[128, 128, 3], the whole picture made small: what the judge and the counter look at."""
    thumb: Path


@dataclass(frozen=True, kw_only=True)
class Cache:
    """A folder of measured pictures. Files appear whole, so a run may be stopped and several may share it."""

    folder: Path
    adapter: Adapter
    steps: int

    def known(self, prompt: Prompt, way: Way, times: int) -> SaveResult | None:
        """What was measured before; None for a picture that has not been rendered."""
        base = self._base(self._key(prompt.spec(way, times, self.steps), way))
        figures = _read(base.with_suffix(".json"))
        if figures is None:
            return None
        native = np.asarray(Image.open(base.with_suffix(".png")).convert("RGB"))
        return SaveResult(figures=figures, native=native, thumb=base.with_suffix(".webp"))

    def measure(self, prompt: Prompt, way: Way, times: int) -> None:
        """Render and measure a picture."""
        spec = prompt.spec(way, times, self.steps)
        stages = Stages()
        denoised = _denoised(spec, way, self.adapter, stages)
        grid = denoised.state.tiling.grid
        piece = denoised.gather(grid.whole)
        sink = _Nowhere()
        plan = make_plan(spec, self.adapter.info, 1)
        report = publish_pyramid(piece, self.adapter, plan, SingleRankGroup(), cast(Sink, sink), device=CPU)
        pixels = _picture(sink.files, report.layout.top_level, spec)
        figures = {
            "prompt": spec.prompt,
            "seams": asdict(seam_score(report.columns, report.rows)),
            "bands": band_energies(pixels, NATIVE),
            "means": [*stages.means, _mean(pixels)],
            "decode_shift": _decode_shift(pixels, piece, self.adapter, report.layout.decode_tile),
            "cost": cost(spec, way, self.adapter),
        }
        base = self._base(self._key(spec, way))
        base.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(small(pixels, NATIVE)).save(base.with_suffix(".png"))
        Image.fromarray(pixels).resize((THUMB, THUMB), Image.Resampling.LANCZOS).save(
            base.with_suffix(".webp"), quality=88
        )
        _write(base.with_suffix(".json"), figures)

    def photographs(self, prompt: Prompt, times: int) -> list[float]:
        """Mean band energies of `PHOTOGRAPHS` studio photographs that the prompt describes, at this size."""
        base = self.folder / "photographs" / f"{prompt.number}-{times}-{PHOTOGRAPHS}-{_VERSION}.json"
        return _remembered(base, lambda: [band_energies(p, NATIVE) for p in _photographs(prompt, times)])

    def coded(self, prompt: Prompt, times: int) -> list[float]:
        """The same of these photographs after the autoencoder: more than it keeps no picture can show."""
        name = f"{prompt.number}-{times}-{PHOTOGRAPHS}-{self.adapter.info.digest[:12]}-{_VERSION}.json"
        return _remembered(
            self.folder / "coded" / name,
            lambda: [band_energies(_coded(p, self.adapter), NATIVE) for p in _photographs(prompt, times)],
        )

    def enlarged(self, prompt: Prompt, native: Way, times: int) -> list[float] | None:
        """Band energies of the native picture enlarged bicubically; None where there is none yet."""
        kept = self.known(prompt, native, 1)
        if kept is None:
            return None
        side = NATIVE * times
        large = Image.fromarray(kept.native).resize((side, side), Image.Resampling.BICUBIC)
        return band_energies(np.asarray(large), NATIVE)

    def _key(self, spec: Spec, way: Way) -> str:
        kind = ("cascade" if way.cascade else "plain") + ("" if way.placed else "-unplaced")
        return f"{spec.digest(self.adapter.info.digest)}-{kind}-{_VERSION}"

    def _base(self, key: str) -> Path:
        return self.folder / key[:2] / key


def _photographs(prompt: Prompt, times: int) -> Iterator[Pixels]:
    draw = np.random.default_rng([prompt.number, 1])
    for _ in range(PHOTOGRAPHS):
        material = str(draw.choice(["ceramic", "wood", "woven"]))
        scene = replace(prompt.scene, seed=int(draw.integers(2**31)), material=material)
        yield photo(scene, NATIVE * times, NATIVE * times)


def _coded(pixels: Pixels, adapter: Adapter) -> Pixels:
    """A picture encoded and decoded again, in one go."""
    whole = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
    again = adapter.decode(adapter.encode(whole))[0] * 255
    return again.round().to(torch.uint8).permute(1, 2, 0).numpy()


def _remembered(path: Path, measure: Callable[[], list[list[float]]]) -> list[float]:
    """The mean of some band energies, measured once."""
    found = _read(path)
    if found is None:
        found = {"bands": [float(value) for value in np.mean(measure(), axis=0)]}
        _write(path, found)
    bands: list[float] = found["bands"]
    return bands


def cost(spec: Spec, way: Way, adapter: Adapter) -> float:
    """Latents that all evaluations cover, over those of one pass at the full size without overlaps."""
    plan = make_plan(spec, adapter.info, 1)
    last = plan.stages[-1]
    grid = last.stage.grid
    once = spec.steps * last.stage.passes * grid.height * grid.width
    if way.cascade:
        return plan.work / once
    return grid.windows * grid.rows.window * grid.cols.window / (grid.height * grid.width)


class _Unplaced:
    """An adapter that tells every window that it is a whole picture."""

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter

    def __getattr__(self, name: str) -> Any:
        return getattr(self._adapter, name)

    def predict(
        self, latents: Tensor, timestep: float, text: Any, places: Sequence[WindowPlace], *rest: Any
    ) -> Tensor:
        whole = [
            replace(place, image_height=place.height, image_width=place.width, pixel_y=0, pixel_x=0)
            for place in places
        ]
        return self._adapter.predict(latents, timestep, text, whole, *rest)


def _denoised(spec: Spec, way: Way, adapter: Adapter, stages: Stages) -> Denoised:
    if not way.placed:
        adapter = cast(Adapter, _Unplaced(adapter))
    if way.cascade:
        return render_latents(spec, adapter, SingleRankGroup(), device=CPU, preview=cast(Preview, stages))
    stage = replace(make_stages(spec, adapter.info)[-1], first_step=0)
    schedule = adapter.schedule(spec.sampler, spec.steps)
    text = adapter.encode_prompt(spec.prompt, spec.negative_prompt, stage.passes == 2)
    loop = StageLoop(
        plan=StagePlan(spec=spec, info=adapter.info, stage=stage),
        schedule=schedule,
        adapter=adapter,
        texts=(text,),
        device=CPU,
    )
    area = stage.grid.whole
    canvas = first_canvas(stage, schedule, spec.seed, adapter.info.latent_channels, area)
    state = loop.run(canvas, SingleRankGroup())
    return Denoised(state=state, scale=schedule.final_scale, seconds={})


def _picture(files: dict[str, bytes], level: int, spec: Spec) -> Pixels:
    """The full level of the pyramid: pictures here are no larger than one tile."""
    return np.asarray(Image.open(BytesIO(files[f"image_files/{level}/0_0.{spec.format}"])).convert("RGB"))


def _whole(piece: LatentRegion, adapter: Adapter) -> Pixels:
    """The picture decoded in one go, as one tile."""
    scale = adapter.info.scale_factor
    height, width = piece.canvas.height, piece.canvas.width
    area = Rect(y=0, x=0, height=height * scale, width=width * scale)
    grid = even_grid(piece.canvas, max(height, width), 1)
    with block_decoder(adapter, piece, grid, SingleRankGroup(), CPU) as decode_block:
        return decode_block(area)


def _decode_shift(pixels: Pixels, piece: LatentRegion, adapter: Adapter, side: int) -> float:
    """The largest mean difference of a decode tile from the picture decoded in one go, in grey levels."""
    step = side * adapter.info.scale_factor
    if max(pixels.shape[:2]) <= step:
        return 0.0
    apart = pixels.astype(np.float64) - _whole(piece, adapter)
    corners = [(y, x) for y in range(0, pixels.shape[0], step) for x in range(0, pixels.shape[1], step)]
    return max(float(np.abs(apart[y : y + step, x : x + step].mean(axis=(0, 1))).max()) for y, x in corners)


def _mean(pixels: NDArray[np.uint8]) -> list[float]:
    return [float(value) for value in pixels.reshape(-1, 3).mean(axis=0)]


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        return None
    return found


def _write(path: Path, figures: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(figures), encoding="utf-8")
    part.rename(path)
