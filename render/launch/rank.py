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
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from render.errors import (
    BadInput,
    GroupChanges,
    NoImage,
    RanksLost,
    RenderError,
    SinkError,
    Stopped,
    exit_code,
)
from render.events import CheckpointSaved, ModelLoaded, RankFailed, RankStarted, RankStopped
from render.launch.epoch_client import has_epochs
from render.launch.event_channel import EventSender
from render.launch.forward_events import ForwardEvents
from render.launch.group_directory import events_path, request_path
from render.launch.observer import RankContext, RankObserver, make_observer
from render.launch.parent_death import die_with_parent
from render.launch.prompt_texts import PromptTexts
from render.launch.rank_environment import PEERS_LOST
from render.launch.request import LATENTS_KEY, FurtherImage, Request
from render.launch.sinks import open_sink

if TYPE_CHECKING:
    import torch

    from render.denoise.checkpoint import CheckpointManager, SaveResult
    from render.denoise.model_calls import ModelCalls
    from render.denoise.replica import Replicas
    from render.distributed import Group
    from render.launch.elastic_group import ElasticGroup
    from render.models.adapter import Adapter
    from render.models.joined_calls import CallJoiner
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
    from render.distributed import abandon, leave
    from render.launch.elastic_group import ElasticGroup

    elastic = ElasticGroup(directory, events.send) if has_epochs() else None
    try:
        _serve(_Rank(events, stop, PromptTexts(directory), elastic), directory)
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
        leave() if elastic is None else abandon()
    return 0


def _serve(rank: _Rank, directory: Path) -> None:
    number = 1
    # A rank that replaces one that has died begins with the others' request.
    while request_path(directory, number + 1).exists():
        number += 1
    request: Request | None = None
    while True:
        path = request_path(directory, number)
        if path.exists():
            request = Request.read(path)
            rank.render(request, number)
            if request.last:
                return
            number += 1
        elif request is not None and not request.more and rank.epoch_ended:
            # Whether the others know that the image is published is not certain: do the end of it again.
            rank.render(request, number - 1)
        else:
            time.sleep(_POLL_S)


def _failure(exc: RenderError) -> RankFailed:
    bad = (exc.field, str(exc.value), exc.fix) if isinstance(exc, BadInput) else None
    text, outage = str(exc)[:_LONGEST_TEXT], isinstance(exc, SinkError)
    return RankFailed(
        code=exit_code(exc), text=text, outage=outage, bad_input=bad, permanent=isinstance(exc, NoImage)
    )


@dataclass(frozen=True)
class _Work:
    """What a request is rendered with."""

    request: Request
    number: int
    device: torch.device
    models: tuple[Adapter, Adapter | None]
    observer: RankObserver

    @property
    def images(self) -> tuple[FurtherImage, ...]:
        return self.request.images


@dataclass
class _Rank:
    """What lives from one request to the next: the group, and the model that was used last."""

    events: EventSender
    stop: threading.Event
    texts: PromptTexts
    elastic: ElasticGroup | None = None
    """Where the group may change; None where it stays as torchrun has started it."""
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

    @property
    def epoch_ended(self) -> bool:
        """Whether a rank of the group has died since the last image was done."""
        return self.elastic is not None and self.elastic.broken

    def render(self, request: Request, number: int) -> None:
        """Render one image with the other ranks: the group's request of this number."""
        import torch

        from render.distributed import choose_device
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
        present = [model for model in models if model is not None]
        self.texts.provide(request, present, device, partial(self._put_additions, models[0], spec))
        self._set_embeddings(models[0], spec.embedding)
        self._set_loras(models[0], spec.lora)
        self._set_controlnets(models[0], spec, device)
        self._set_ip_adapter(models[0], spec, device)
        context = RankContext(
            rank=int(os.environ["RANK"]),
            slot=request.slots[local_rank] if request.slots else local_rank,
            model=spec.model,
            device_memory=partial(device_memory, device),
        )
        observer = make_observer(request.observer, context)
        work = _Work(request, number, device, models, observer)
        try:
            if request.more:
                self._render_share(work)
            elif self.elastic is None:
                self._render_with(work, self._group_of(device))
            else:
                self._render_elastic(work, self.elastic)
        except torch.OutOfMemoryError as exc:
            raise RenderFailed(
                f"rank {context.rank} has not enough memory on {device}; use more ranks or a smaller "
                "window_batch"
            ) from exc
        finally:
            observer.close()

    def _group_of(self, device: torch.device) -> Group:
        """The group as torchrun has started it."""
        from render.distributed import join

        self._group = self._group or join(device)
        return self._group

    def _render_with(self, work: _Work, group: Group) -> None:
        """Render an image with a group that stays as it is."""
        # All ranks take the same steps; the first one of each node reports them.
        first = int(os.environ["LOCAL_RANK"]) == 0
        forward = ForwardEvents(self.events, work.observer, work.number, group.rank, first)
        self._render(work, work.images[0], forward, group)
        forward.finish()

    def _render_elastic(self, work: _Work, elastic: ElasticGroup) -> None:
        """Render an image with a group that may lose ranks and be joined by others."""
        tries: list[ForwardEvents] = []

        def render(group: Group, replicas: Replicas) -> None:
            first = group.rank == 0
            tries.append(ForwardEvents(self.events, work.observer, work.number, group.rank, first))
            self._render(work, work.images[0], tries[-1], group, replicas=replicas)

        if elastic.run(work.number, work.device, render):
            tries[-1].finish()

    def _render(
        self,
        work: _Work,
        image: FurtherImage,
        on_event: ForwardEvents,
        group: Group,
        calls: ModelCalls | None = None,
        replicas: Replicas | None = None,
    ) -> None:
        from render.denoise.checkpoint import CheckpointManager
        from render.denoise.model_calls import JoinedCalls
        from render.engine import render_image, render_to_latents
        from render.models.joined_calls import CallJoiner
        from render.spec import Spec

        request = work.request
        spec = Spec.from_mapping(image.spec)
        sink = open_sink(image.out, patience_s=request.patience_s, observer=work.observer.on_sink_call)
        adapter, refiner = work.models
        checkpoints: CheckpointManager = CheckpointManager(
            sink,
            spec.digest(request.info.digest),
            work.device,
            every_s=request.checkpoint_s,
            stop=self.stop.is_set,
            on_save=lambda result: on_event(_checkpoint_event(result)),
            replicas=replicas,
            changes=None if self.elastic is None or replicas is None else self.elastic.joining,
        )
        self._joiner = self._joiner or CallJoiner(adapter)
        render: Callable[..., object] = render_image
        if request.output == "latents":
            render = partial(render_to_latents, key=LATENTS_KEY)
        try:
            render(
                spec,
                adapter,
                group,
                sink,
                device=work.device,
                on_event=on_event,
                checkpoints=checkpoints,
                refiner=refiner,
                calls=calls or JoinedCalls(self._joiner),
            )
        except (RanksLost, GroupChanges):
            # Older than what the ranks have of each other; it must not be saved over a later one.
            checkpoints.close()
            raise

    def _render_share(self, work: _Work) -> None:
        """Render this rank's images of a request that has several, by itself."""
        from render.denoise.shared_calls import SharedCalls
        from render.distributed import SingleRankGroup
        from render.models.joined_calls import CallJoiner
        from render.plan.plan import make_plan
        from render.spec import Spec

        def render(number: int, calls: ModelCalls) -> bool:
            # Whoever renders an image alone is its first rank.
            forward = ForwardEvents(self.events, work.observer, work.number, 0, True, image=number)
            self._render(work, work.images[number], forward, SingleRankGroup(), calls)
            forward.finish()
            return True

        request = work.request
        at_once = make_plan(Spec.from_mapping(request.spec), request.info, 1).images_at_once
        self._joiner = self._joiner or CallJoiner(work.models[0])
        shared = SharedCalls(self._joiner, at_once)

        def share(rank: int, ranks: int) -> None:
            own = range(rank, len(work.images), ranks)
            # What one image raises leaves the others: they are done by then.
            outcomes = dict(shared.run(partial(render, number) for number in own))
            for outcome in outcomes.values():
                if isinstance(outcome, Exception):
                    raise outcome

        if self.elastic is None:
            share(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
        else:
            self.elastic.run_apart(work.number, work.device, share)

    def _models(self, request: Request, device: torch.device, spec: Spec) -> tuple[Adapter, Adapter | None]:
        from render.models import load_models
        from render.models.skeletons import text_encoders_apart

        wanted = (request.folders, request.info.digest, spec.dtype, spec.quantize)
        if self._loaded is None or self._loaded[0] != wanted:
            # Free the old model before the new one is loaded: there is seldom room for two.
            self._loaded = self._joiner = None
            self._loras, self._controlnets, self._embeddings, self._ip_adapter = (), (), (), None
            started = time.perf_counter()
            with text_encoders_apart():
                models = load_models(
                    request.folders, device, spec.dtype, request.info, quantize=spec.quantize
                )
            self._loaded = wanted, models
            if int(os.environ["LOCAL_RANK"]) == 0:
                self.events.send(ModelLoaded(seconds=time.perf_counter() - started))
        return self._loaded[1]

    def _put_additions(self, adapter: Adapter, spec: Spec, on: bool) -> None:
        """Put a request's LoRA and learned words on the model, or take all off it."""
        self._set_embeddings(adapter, spec.embedding if on else ())
        self._set_loras(adapter, spec.lora if on else ())

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
