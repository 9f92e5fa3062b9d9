"""The step loop of one stage: predict windows, fuse, exchange borders, step once on the fused canvas.

Inside a step a rank does, in this order: the windows whose results some other rank needs, and those that
speak to all (`chorus`); the start of the one all-gather; its other windows while the gather is in flight; the
wait; one sampler step on all that it holds. Latents held by several ranks are stepped by each of them, to the
same bits, since their sums are integers and the sampler is elementwise.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import InitVar, dataclass, field
from typing import Any

import torch
from torch import Tensor

from render.canvas import Canvas, cut_out, gather_planes
from render.denoise.fusion import FixedPoint, pass_weights
from render.denoise.halo_exchange import make_halo_exchange
from render.distributed import Group
from render.errors import RenderFailed
from render.guidance.color_correction import COLOUR_CHANNELS
from render.guidance.global_context import GlobalContext
from render.guidance.ilvr import apply_ilvr
from render.guidance.shared_latents import SharedLatents, shared_latents_in, stage_noise
from render.guidance.skip_residual import apply_skip_residual
from render.models.adapter import Adapter, WindowPlace
from render.plan.decay import decayed_strength
from render.plan.geometry import Layer, Rect
from render.plan.region_prompts import prompt_weights
from render.plan.stages import Stage
from render.plan.tiling import Tiling
from render.plan.token_sources import TokenSource
from render.plan.topology import Topology
from render.sampling import samplers
from render.sampling.noise import INITIAL
from render.sampling.schedule import NoiseSchedule
from render.spec import Spec


@dataclass
class StepTimes:
    """Seconds that this rank spent in the phases of a step, and what it did in them."""

    model: float = 0.0
    wait: float = 0.0
    fuse: float = 0.0
    exchange: float = 0.0
    """Seconds from the start of the gather until it was taken; the model works meanwhile. 0 when alone."""
    calls: int = 0
    """Batches that the model has seen."""
    border_bytes: int = 0
    """Bytes that were said to the others."""

    def phases(self) -> dict[str, float]:
        """The seconds that add up to the step."""
        return {"model": self.model, "wait": self.wait, "fuse": self.fuse}


OnStep = Callable[[int, StepTimes], None]
"""Called after each step with the number of steps done and the step's times."""
BeforeStep = Callable[[Group], int]
"""Asked before each step for the word that this rank says to all: bits that are or-ed together."""
AfterStep = Callable[["StageState", int], None]
"""Called after each step, on all ranks with the same word. May gather; may raise, on all ranks alike."""
Regroup = Callable[[int, Group], Group]
"""Asked between two steps for the group to go on with; returning the same one changes nothing."""


@dataclass(frozen=True, kw_only=True)
class StageLoop:
    """Denoises the canvas of one stage. Opens nothing; the group comes in as an argument."""

    spec: Spec
    stage: Stage
    schedule: NoiseSchedule
    adapter: Adapter
    texts: tuple[Any, ...]
    """The encoded prompts: the image's own, then those of its boxes."""
    device: torch.device

    def run(
        self,
        canvas: Canvas,
        group: Group,
        *,
        on_step: OnStep | None = None,
        regroup: Regroup | None = None,
        before_step: BeforeStep | None = None,
        after_step: AfterStep | None = None,
    ) -> StageState:
        """Advance `canvas`, which holds at least `tiling(group).boxes[group.rank]`, to the last step.

        Returns the rank's seat in the group that has finished the stage.
        Raises `RenderFailed` when the model answers with something that is not a number.
        """
        seat = StageState(self, canvas, group)
        del canvas
        while seat.step < self.stage.steps:
            if regroup is not None:
                successor = regroup(seat.step, seat.group)
                if successor.epoch != seat.group.epoch:
                    seat = StageState(self, seat.gather(), successor)
            times, word = seat.advance(0 if before_step is None else before_step(seat.group))
            if on_step is not None:
                on_step(seat.step, times)
            if after_step is not None:
                after_step(seat, word)
        return seat

    def tiling(self, group: Group) -> Tiling:
        """The stage dealt out to a group."""
        return self.stage.tiling(group.world_size)

    def prompt_weights(self, surface: Topology, box: Rect) -> Tensor | None:
        """[layers, box] what each layer's prediction counts, on the host; None where there is one alone."""
        if not self.stage.patches:
            return None
        boxes = [(self.spec.boxes[patch.text - 1], patch.area) for patch in self.stage.patches]
        shares = torch.from_numpy(prompt_weights(boxes, surface))
        return cut_out(shares, surface.whole, box, surface).clone()

    def colour_share(self, surface: Topology, box: Rect) -> Tensor:
        """[box.height, box.width]: by what share the stage keeps the colours that it enlarges.

        Not above the first stage, whose picture is small enough to have stains of its own, which the second
        cleans. Not where a box's prompt begins to be heard. Nor in a set of tiles: there sides that join are
        equal to the bit, and what lies behind them is not.
        """
        cleans = self.stage.index == 1 and self.spec.init is None
        keeps = self.stage.enlarges and not cleans and self.stage.tile_set_layout is None
        share = torch.full((box.height, box.width), self.spec.ilvr if keeps else 0.0)
        shares = self.prompt_weights(surface, box) if self.stage.composes else None
        if shares is not None:
            for number, patch in enumerate(self.stage.patches, start=1):
                if patch.text in self.stage.composes:
                    share *= 1.0 - shares[number]
        return share


@dataclass(frozen=True)
class _Evaluation:
    """One window under one condition: what a row of a model call is."""

    voice: TokenSource
    window: Rect

    @property
    def layer(self) -> int:
        return self.voice[0][0]

    @property
    def turn(self) -> int:
        """Number of the pass."""
        return self.voice[1]


@dataclass
class StageState:
    """One rank's place in a stage for as long as the group stays the same."""

    loop: StageLoop
    canvas: InitVar[Canvas]
    group: Group
    step: int = field(init=False)
    """Steps done."""
    tiling: Tiling = field(init=False)
    box: Rect = field(init=False)
    state: samplers.SamplerState = field(init=False)
    guidance: float = field(init=False)
    weights: tuple[float, ...] = field(init=False)
    fixed: FixedPoint = field(init=False)
    chorus: GlobalContext = field(init=False)
    tied: SharedLatents | None = field(init=False)
    anchor: Tensor | None = field(init=False)
    """What the stage started from, before it was noised; None where nothing is held to it."""
    colours: Tensor | None = field(init=False)
    """The plane of its colours, which waits until the stage is decoded."""

    def __post_init__(self, canvas: Canvas) -> None:
        self.step = canvas.step
        self.tiling = self.loop.tiling(self.group)
        self.guidance = self.loop.spec.guidance(self.loop.adapter.info)
        self.weights = pass_weights(self.tiling.passes, self.guidance)
        self.fixed = FixedPoint.for_weights(self.weights)
        self.box = self.tiling.boxes[self.group.rank]
        own = cut_out(canvas.planes, canvas.area, self.box, self.tiling.surface)
        planes = own.to(self.loop.device, copy=True)
        self.state = samplers.SamplerState(planes[0], tuple(planes[1 : 1 + canvas.heard]))
        self.chorus = GlobalContext(self.loop, self.tiling, self.group.rank, self.step, canvas.said)
        self.tied = (
            None if self.loop.stage.latent_classes is None else shared_latents_in(self.loop.stage, self.box)
        )
        self.chorus.open(self.state.x, self.box, self.group)
        self.anchor, self.colours = planes[-2:] if canvas.anchored else (None, None)
        holds = self.anchor is not None and self.loop.spec.skip_residual > 0
        self._anchor_noise = self._normal(INITIAL) if holds else None
        shares = self.loop.prompt_weights(self.tiling.surface, self.box)
        self._shares = None if shares is None else shares.to(self.loop.device)

    def advance(self, word: int = 0) -> tuple[StepTimes, int]:
        """One step of the sampler on all that this rank holds; also the word that the ranks agree on."""
        stage, schedule, step = self.loop.stage, self.loop.schedule, self.step
        times = StepTimes()
        offset = stage.offset(self.loop.spec.seed_of(stage.index), step)
        exchange = make_halo_exchange(self.tiling, self.group.rank, offset, self.loop.device)
        sums = torch.zeros(self.state.x.shape, dtype=torch.int32, device=self.loop.device)
        first, then = self._batches(offset)
        self._hold_to_anchor()

        self.chorus.begin(step, times)
        self._predict(first, step, offset, sums, times)
        gather_started = time.perf_counter()
        said = self.chorus.say(self.state.x, self.box)
        tied = sums.new_zeros((len(sums), 0)) if self.tied is None else self.tied.say(sums)
        gathering = exchange.start(sums.flatten(1), self.group, word, tied, said)
        self._predict(then, step, offset, sums, times)
        started = time.perf_counter()
        word, totals, heard = exchange.finish(gathering, sums.flatten(1), word, tied, said)
        ended = time.perf_counter()
        times.wait += ended - started
        if gathering is not None:
            times.exchange = ended - gather_started
            times.border_bytes = exchange.message_bytes(tied, said)

        started = time.perf_counter()
        self.chorus.hear(heard, self.box)
        prediction = self.fixed.decode(sums)
        if self.tied is not None:
            self.tied.settle(prediction, totals, self.fixed)
        del sums, said, heard, tied, totals
        denoised = samplers.to_denoised(
            prediction, self.state.x, schedule.sigmas[step], self.loop.adapter.prediction_type
        )
        del prediction
        denoised = self.chorus.guide(denoised, None if self._shares is None else self._shares[0])
        self.state = samplers.step(
            self.loop.spec.sampler, step, schedule, self.state, denoised, self._noise(step)
        )
        times.fuse += time.perf_counter() - started
        self.step += 1
        return times, word

    def gather(self, area: Rect | None = None) -> Canvas:
        """Bring the canvas together, or the area that this rank asks for; all ranks must call it."""
        wanted = self.tiling.grid.whole if area is None else area
        held = [plane for plane in (self.anchor, self.colours) if plane is not None]
        planes = torch.stack([self.state.x, *self.state.history, *held])
        gathered = gather_planes(planes, self.tiling, self.group, wanted)
        return Canvas(
            step=self.step,
            planes=gathered,
            area=wanted,
            heard=len(self.state.history),
            anchored=self.anchor is not None,
            said=self.chorus.heard,
        )

    def finished(self, area: Rect) -> tuple[Tensor, Tensor | None]:
        """Of the area that this rank asks for, what decoding needs, on the host: the latents [C, ..] and,
        where the stage keeps them, the colours [4, ..]. All ranks must call it."""
        own = self.state.x
        if self.colours is not None:
            own = torch.cat([own, self.colours[:COLOUR_CHANNELS]])
        gathered = gather_planes(own[None], self.tiling, self.group, area)[0]
        channels = len(self.state.x)
        return gathered[:channels], None if self.colours is None else gathered[channels:]

    def _hold_to_anchor(self) -> None:
        """Bring the latents nearer to what the stage started from, less and less as it goes on."""
        if self.anchor is None or self._anchor_noise is None:
            return
        share = decayed_strength(self.loop.spec.skip_residual, self.loop.stage, self.step)
        sigma = self.loop.schedule.sigmas[self.step]
        held = apply_skip_residual(self.state.x, self.anchor, self._anchor_noise, sigma, share)
        self.state = samplers.SamplerState(held, self.state.history)

    def _batches(self, offset: tuple[int, int]) -> tuple[list[list[_Evaluation]], list[list[_Evaluation]]]:
        """The rank's evaluations in batches: those of which others must hear, then the rest.

        Each batch is of one layer, whose windows have one shape and one prompt.
        """
        windows = self.tiling.windows_of(self.group.rank)
        shared = dict(zip(windows, self.tiling.border_windows(self.group.rank, offset), strict=True))
        first: list[list[_Evaluation]] = []
        then: list[list[_Evaluation]] = []
        size = self.loop.stage.batch
        evaluations = self.tiling.evaluations_of(self.group.rank)
        for layer in range(len(self.tiling.layers)):
            border: list[_Evaluation] = []
            inner: list[_Evaluation] = []
            for window, turn in evaluations:
                if window[0] == layer:
                    evaluation = _Evaluation((window, turn), self.tiling.window(window, offset))
                    early = (
                        shared[window] or self.chorus.speaks(evaluation.voice) or self._is_tied(evaluation)
                    )
                    (border if early else inner).append(evaluation)
            ordered = border + inner
            batches = [ordered[at : at + size] for at in range(0, len(ordered), size)]
            split = -(-len(border) // size)
            first += batches[:split]
            then += batches[split:]
        return first, then

    def _is_tied(self, evaluation: _Evaluation) -> bool:
        """Whether the window covers latents that have equals elsewhere."""
        if self.tied is None:
            return False
        pieces = self.tiling.surface.intersect(evaluation.window, self.box)
        return any(bool(self.tied.mask[place].any()) for _, place in pieces)

    def _predict(
        self,
        batches: list[list[_Evaluation]],
        step: int,
        offset: tuple[int, int],
        sums: Tensor,
        times: StepTimes,
    ) -> None:
        for batch in batches:
            started = time.perf_counter()
            prediction = self._call_model(batch, step)
            ended = time.perf_counter()
            self._add(batch, prediction, offset, sums)
            times.model += ended - started
            times.calls += 1
            times.fuse += time.perf_counter() - ended

    def _call_model(self, batch: list[_Evaluation], step: int) -> Tensor:
        stage, schedule = self.loop.stage, self.loop.schedule
        # Kernels round differently at other batch shapes, so the last batch is filled up, not shortened.
        filled = batch + [batch[-1]] * (stage.batch - len(batch))
        layer = self.tiling.layers[batch[0].layer]
        x = torch.stack([self._view(self.state.x, evaluation.window) for evaluation in filled])
        sigma = schedule.sigmas[step]
        latents = x * samplers.input_scale(sigma)
        prediction = self.chorus.predict(
            [evaluation.voice for evaluation in batch],
            latents,
            schedule.timesteps[step],
            self.loop.texts[layer.text],
            [self._place(evaluation.window, layer) for evaluation in filled],
            [evaluation.turn for evaluation in filled],
            self.guidance,
        )
        if self.anchor is not None and self._keeps_coarse(layer):
            anchor = torch.stack([self._view(self.anchor, evaluation.window) for evaluation in filled])
            kind, share = self.loop.adapter.prediction_type, self.loop.spec.ilvr
            prediction = apply_ilvr(prediction, x, anchor, sigma, kind, share)
        prediction = prediction[: len(batch)]
        if not bool(torch.isfinite(prediction).all()):
            raise RenderFailed(
                f"the model answered with numbers that are not finite at step {step} of stage {stage.index}; "
                f"try --dtype float32"
            )
        return prediction

    def _keeps_coarse(self, layer: Layer) -> bool:
        stage = self.loop.stage
        return stage.enlarges and layer.text not in stage.composes and self.loop.spec.ilvr > 0

    def _add(
        self, batch: list[_Evaluation], prediction: Tensor, offset: tuple[int, int], sums: Tensor
    ) -> None:
        layer = self.tiling.layers[batch[0].layer]
        (at_y, at_x), axes = layer.offset(offset), layer.grid
        rows = dict(zip(axes.rows.starts(at_y), axes.rows.weights(at_y), strict=True))
        cols = dict(zip(axes.cols.starts(at_x), axes.cols.weights(at_x), strict=True))
        for evaluation, answer in zip(batch, prediction, strict=True):
            window = evaluation.window
            blend = torch.from_numpy(rows[window.y - layer.y][:, None] * cols[window.x - layer.x][None, :])
            weight = (blend * self.weights[evaluation.turn]).to(answer.device)
            if self._shares is not None:
                weight = weight * self._view(self._shares, window)[evaluation.layer]
            self._add_to(sums, window, self.fixed.encode(answer, weight))

    def _view(self, plane: Tensor, window: Rect) -> Tensor:
        return cut_out(plane, self.box, window, self.tiling.surface)

    def _add_to(self, sums: Tensor, window: Rect, terms: Tensor) -> None:
        for there, here in self.tiling.surface.intersect(window, self.box):
            sums[:, *here] += terms[:, *there]

    def _place(self, window: Rect, layer: Layer) -> WindowPlace:
        """Where a window lies in its layer's picture: a box is a picture of its own to the model."""
        pixel = self.loop.adapter.info.scale_factor
        return WindowPlace(
            picture_height=layer.grid.height * pixel,
            picture_width=layer.grid.width * pixel,
            pixel_y=layer.grid.rows.place(window.y - layer.y) * pixel,
            pixel_x=layer.grid.cols.place(window.x - layer.x) * pixel,
            height=window.height * pixel,
            width=window.width * pixel,
        )

    def _noise(self, step: int) -> Tensor | None:
        if self.loop.spec.sampler not in samplers.STOCHASTIC:
            return None
        return self._normal(step)

    def _normal(self, step: int) -> Tensor:
        stage = self.loop.stage
        seed, channels = self.loop.spec.seed_of(stage.index), len(self.state.x)
        return stage_noise(stage, seed, step, channels, self.box).to(self.loop.device)
