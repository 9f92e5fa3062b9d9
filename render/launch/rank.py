"""One rank of a group, forked for torchrun: `python -m render.launch.rank DIRECTORY`.

DIRECTORY belongs to whoever started the group: requests are files in it, events go to a socket in it. Between
two requests the rank waits with its model loaded.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from render.errors import BadInput, NoImage, RanksLost, RenderError, SinkError, Stopped, exit_code
from render.events import (
    CheckpointSaved,
    Event,
    ImageDone,
    ModelLoaded,
    OnEvent,
    RankFailed,
    RankStarted,
    RankStopped,
    StepDone,
    StepTimed,
    TilesWritten,
)
from render.launch.event_channel import EventSender
from render.launch.group_directory import events_path, request_path
from render.launch.observer import RankContext, RankObserver, make_observer
from render.launch.parent_death import die_with_parent
from render.launch.rank_environment import PEERS_LOST
from render.launch.request import LATENTS_KEY, Request
from render.launch.sinks import open_sink

if TYPE_CHECKING:
    import torch

    from render.denoise.checkpoint import CheckpointManager, SaveResult
    from render.denoise.model_calls import ModelCalls
    from render.distributed import Group
    from render.models.adapter import Adapter
    from render.models.joined_calls import CallJoiner
    from render.sink import Sink
    from render.spec import Spec
    from render.spec.embedding import Embedding
    from render.spec.lora import Lora

_POLL_S = 0.01
"""Between two looks for the next request."""
_LONGEST_TEXT = 8_000
"""Characters of an error that an event carries."""


def main(directory: Path) -> int:
    """Render request after request with the other ranks; 0 when the last one is published or stopped."""
    stop = threading.Event()
    # The group asks by this signal for a stop after the step; the ranks then agree on it.
    signal.signal(signal.SIGUSR1, lambda *_: stop.set())
    events = EventSender(events_path(directory), int(os.environ["RANK"]))
    events.send_reliable(RankStarted(pid=os.getpid()))
    from render.distributed import leave

    try:
        _serve(_Rank(events, stop), directory)
    except Stopped as exc:
        events.send_reliable(RankStopped(text=str(exc)))
        return 0
    except RanksLost:
        # Not sent as an event: this rank does not know why the others are gone.
        traceback.print_exc()
        return PEERS_LOST
    except RenderError as exc:
        events.send_reliable(_failure(exc))
        return exit_code(exc)
    finally:
        leave()
    return 0


def _serve(rank: _Rank, directory: Path) -> None:
    number = 1
    while True:
        path = request_path(directory, number)
        if path.exists():
            request = Request.read(path)
            rank.render(request)
            if request.last:
                return
            number += 1
        else:
            time.sleep(_POLL_S)


def _failure(exc: RenderError) -> RankFailed:
    bad = (exc.field, str(exc.value), exc.fix) if isinstance(exc, BadInput) else None
    text, outage = str(exc)[:_LONGEST_TEXT], isinstance(exc, SinkError)
    return RankFailed(
        code=exit_code(exc), text=text, outage=outage, bad_input=bad, permanent=isinstance(exc, NoImage)
    )


@dataclass
class _Rank:
    """What lives from one request to the next: the group, and the model that was used last."""

    events: EventSender
    stop: threading.Event
    _group: Group | None = None
    _embeddings: tuple[tuple[str, str], ...] | None = ()
    """Learned words of the model, by digest and word."""
    _loras: tuple[tuple[str, float], ...] | None = ()
    """Those on the model, by digest and weight."""
    _controlnets: tuple[str, ...] | None = ()
    """Those beside the model, by digest."""
    _ip_adapter: tuple[str, float] | None = None
    """The one on the model, by digest and weight."""
    _loaded: tuple[tuple[Any, ...], tuple[Adapter, Adapter | None]] | None = field(default=None)
    _joiner: CallJoiner | None = None
    """Of the model with its LoRA."""

    def render(self, request: Request) -> None:
        """Render one image with the other ranks."""
        import torch

        from render.distributed import choose_device, join
        from render.errors import RenderFailed
        from render.launch.device_memory import device_memory
        from render.spec import Spec

        if request.log is not None:
            _redirect_output(request.log)
        local_rank = int(os.environ["LOCAL_RANK"])
        device = choose_device(request.device, local_rank)
        if device.type == "cpu":
            # Kernels split their sums by threads: another number would change the last bits.
            torch.set_num_threads(1)
        spec = Spec.from_mapping(request.spec)
        models = self._models(request, device, spec)
        self._set_embeddings(models[0], spec.embedding)
        self._set_loras(models[0], spec.lora)
        self._set_controlnets(models[0], spec, device)
        self._set_ip_adapter(models[0], spec, device)
        self._group = self._group or join(device)
        context = RankContext(
            rank=self._group.rank,
            slot=request.slots[local_rank] if request.slots else local_rank,
            model=spec.model,
            device_memory=partial(device_memory, device),
        )
        observer = make_observer(request.observer, context)
        try:
            if request.more:
                self._render_share(request, models, device, observer)
                return
            sink = open_sink(request.out, patience_s=request.patience_s, observer=observer.on_sink_call)
            self._render(request, spec, models, sink, device, _forward(self.events, observer))
        except torch.OutOfMemoryError as exc:
            raise RenderFailed(
                f"rank {self._group.rank} has not enough memory on {device}; use more ranks or a smaller "
                "window_batch"
            ) from exc
        finally:
            observer.close()

    def _render(
        self,
        request: Request,
        spec: Any,
        models: tuple[Adapter, Adapter | None],
        sink: Sink,
        device: torch.device,
        on_event: OnEvent,
        group: Group | None = None,
        calls: ModelCalls | None = None,
    ) -> None:
        from render.denoise.checkpoint import CheckpointManager
        from render.denoise.model_calls import JoinedCalls
        from render.engine import render_image, render_to_latents
        from render.models.joined_calls import CallJoiner

        group = group or self._group
        assert group is not None
        checkpoints: CheckpointManager = CheckpointManager(
            sink,
            spec.digest(request.info.digest),
            device,
            every_s=request.checkpoint_s,
            stop=self.stop.is_set,
            on_save=lambda result: on_event(_checkpoint_event(result)),
        )
        adapter, refiner = models
        self._joiner = self._joiner or CallJoiner(adapter)
        calls = calls or JoinedCalls(self._joiner)
        render: Callable[..., object] = render_image
        if request.output == "latents":
            render = partial(render_to_latents, key=LATENTS_KEY)
        render(
            spec,
            adapter,
            group,
            sink,
            device=device,
            on_event=on_event,
            checkpoints=checkpoints,
            refiner=refiner,
            calls=calls,
        )

    def _render_share(
        self,
        request: Request,
        models: tuple[Adapter, Adapter | None],
        device: torch.device,
        observer: RankObserver,
    ) -> None:
        """Render this rank's images of a request that has several, by itself."""
        from render.denoise.shared_calls import SharedCalls
        from render.distributed import SingleRankGroup
        from render.models.joined_calls import CallJoiner
        from render.plan.plan import make_plan
        from render.spec import Spec

        assert self._group is not None

        def render(number: int, calls: ModelCalls) -> bool:
            image = request.images[number]
            on_event = _forward(self.events, observer, number)
            sink = open_sink(image.out, patience_s=request.patience_s, observer=observer.on_sink_call)
            spec = Spec.from_mapping(image.spec)
            self._render(request, spec, models, sink, device, on_event, SingleRankGroup(), calls)
            return True

        own = range(self._group.rank, len(request.images), self._group.world_size)
        at_once = make_plan(Spec.from_mapping(request.spec), request.info, 1).images_at_once
        self._joiner = self._joiner or CallJoiner(models[0])
        shared = SharedCalls(self._joiner, at_once)
        outcomes = dict(shared.run(partial(render, number) for number in own))
        # What one image raises leaves the others: they are done by now.
        for outcome in outcomes.values():
            if isinstance(outcome, Exception):
                raise outcome

    def _models(self, request: Request, device: torch.device, spec: Spec) -> tuple[Adapter, Adapter | None]:
        from render.models import load_models

        wanted = (request.folders, request.info.digest, spec.dtype, spec.quantize)
        if self._loaded is None or self._loaded[0] != wanted:
            # Free the old model before the new one is loaded: there is seldom room for two.
            self._loaded = self._joiner = None
            self._loras, self._controlnets, self._embeddings, self._ip_adapter = (), (), (), None
            started = time.perf_counter()
            models = load_models(request.folders, device, spec.dtype, request.info, quantize=spec.quantize)
            self._loaded = wanted, models
            if int(os.environ["LOCAL_RANK"]) == 0:
                self.events.send(ModelLoaded(seconds=time.perf_counter() - started))
        return self._loaded[1]

    def _set_controlnets(self, adapter: Adapter, spec: Any, device: Any) -> None:
        """Load a request's ControlNets beside the model in place of those of the request before."""
        from render.models.controlnet import set_controlnets

        wanted = tuple(network.digest for network in spec.controlnet)
        if wanted != self._controlnets:
            self._controlnets = None
            set_controlnets(adapter, spec.controlnet, device, spec.dtype)
            self._controlnets = wanted

    def _set_ip_adapter(self, adapter: Adapter, spec: Spec, device: torch.device) -> None:
        """Put a request's IP-Adapter on the model in place of that of the request before."""
        own = spec.ip_adapter
        wanted = None if own is None else (own.digest, own.weight)
        if wanted != self._ip_adapter:
            from render.models.ip_adapter import set_ip_adapter

            # What is half on the model must not be taken for one that is on it.
            self._ip_adapter, self._joiner = ("", 0.0), None
            set_ip_adapter(adapter, own, device, spec.dtype)
            self._ip_adapter = wanted

    def _set_embeddings(self, adapter: Adapter, embeddings: tuple[Embedding, ...]) -> None:
        """Give the model a request's learned words in place of those of the request before."""
        from render.models.embeddings import set_embeddings

        wanted = tuple((each.digest, each.word) for each in embeddings)
        if wanted != self._embeddings:
            self._embeddings = None
            set_embeddings(adapter.pipeline, embeddings)
            self._embeddings = wanted

    def _set_loras(self, adapter: Adapter, loras: tuple[Lora, ...]) -> None:
        """Put a request's LoRA on the model in place of those of the request before."""
        from render.models.lora import set_loras

        wanted = tuple((lora.digest, lora.weight) for lora in loras)
        if wanted != self._loras:
            # What is half on the model must not be taken for one that is on it.
            self._loras = self._joiner = None
            set_loras(adapter.pipeline, loras)
            self._loras = wanted


def _checkpoint_event(result: SaveResult) -> CheckpointSaved:
    return CheckpointSaved(
        stage=result.checkpoint.stage,
        step=result.checkpoint.canvas.step,
        bytes=result.bytes,
        seconds=result.seconds,
        error=None if result.error is None else str(result.error)[:_LONGEST_TEXT],
    )


def _forward(
    events: EventSender, observer: RankObserver, image: int | None = None
) -> Callable[[Event], None]:
    """Sends a rank's events to the group, and all of them to its observer.

    All ranks take the same steps; the first one of each node reports them, the others only their times.
    Each rank has its own tiles. `image` is the number of one that this rank renders by itself.
    """
    # Whoever renders an image alone is its first rank.
    local_rank = int(os.environ["LOCAL_RANK"]) if image is None else 0

    def on_event(event: Event) -> None:
        event = replace(event, image=image or 0)
        observer.on_event(event)
        if isinstance(event, ImageDone):
            # All ranks have it at the same point; each node learns that its ranks wait for the next request.
            if local_rank == 0:
                events.send_reliable(event)
        elif local_rank == 0 or isinstance(event, TilesWritten):
            events.send(event)
        elif isinstance(event, StepDone):
            events.send(StepTimed(stage=event.stage, step=event.step, phases=event.phases))

    return on_event


def _redirect_output(log: str) -> None:
    """What this process prints from here on goes to the end of a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


def run(directory: Path) -> int:
    """Be a rank of this process's environment until the last request is done; returns the exit code."""
    try:
        return main(directory)
    except Exception:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


if __name__ == "__main__":
    die_with_parent()
    # Not by way of the interpreter's end: there gloo's threads now and then abort a process that is done.
    os._exit(run(Path(sys.argv[1])))
