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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from render.errors import Dismissed, GroupChanges, RanksLost, RenderError, RenderFailed, Stopped, exit_code
from render.events import ImageDone, RankStarted, RankStopped
from render.launch.added_ranks import is_added, local_device, slot_of
from render.launch.event_channel import EventSender
from render.launch.forward_events import ForwardEvents
from render.launch.group_directory import events_path, is_done, request_path, stop_path
from render.launch.loaded_model import LoadedModel
from render.launch.observer import RankContext, RankObserver, make_observer
from render.launch.parent_death import die_with_parent
from render.launch.prompt_texts import PromptTexts
from render.launch.rank_environment import PEERS_LOST
from render.launch.rank_events import checkpoint_event, failure_event
from render.launch.request import LATENTS_KEY, FurtherImage, Request
from render.launch.sinks import open_sink

if TYPE_CHECKING:
    import torch

    from render.denoise.model_calls import ModelCalls
    from render.denoise.replica import Replicas
    from render.distributed import Group
    from render.launch.elastic_group import ElasticGroup
    from render.models.adapter import Adapter

_POLL_S = 0.01
"""Between two looks for the next request."""


def main(directory: Path) -> int:
    """Render request after request with the other ranks; 0 when the last one is published or stopped."""
    stop = threading.Event()
    # The group asks by this signal for a stop after the step; the ranks then agree on it.
    signal.signal(signal.SIGUSR1, lambda *_: stop.set())
    events = EventSender(events_path(directory), int(os.environ["RANK"]))
    events.send_reliable(RankStarted(pid=os.getpid()))
    from render.distributed import abandon
    from render.launch.elastic_group import ElasticGroup

    try:
        elastic = ElasticGroup(directory, events.send_reliable)
        _serve(_Rank(events, stop, LoadedModel(events.send, PromptTexts(directory)), elastic), directory)
    except Stopped as exc:
        events.send_reliable(RankStopped(text=str(exc)))
        return 0
    except Dismissed:
        return 0
    except RanksLost:
        # Not sent as an event: this rank does not know why the others are gone.
        traceback.print_exc()
        return PEERS_LOST
    except RenderError as exc:
        events.send_reliable(replace(failure_event(exc), added=is_added()))
        return exit_code(exc)
    finally:
        abandon()
    return 0


def _serve(rank: _Rank, directory: Path) -> None:
    number = 1 if rank.elastic is None else first_request(directory)
    last: Request | None = None
    while True:
        request = _read_request(directory, number)
        if request is None:
            if last is not None and not (last.more or is_done(directory, number - 1)) and rank.group_changes:
                # Whether the others know that the image is published is not certain: do its end again.
                rank.render(last, number - 1)
            time.sleep(_POLL_S)
        elif request.at_once > 1:
            number = rank.render_at_once(directory, number, request)
        else:
            rank.render(request, number)
            if request.last:
                return
            last, number = request, number + 1


def first_request(directory: Path) -> int:
    """Where a rank begins: one that joins others with their request, the newest. One that renders several at
    once is alone, and begins with the first."""
    newest = 1
    while request_path(directory, newest + 1).exists():
        newest += 1
    request = _read_request(directory, newest)
    return 1 if request is not None and request.at_once > 1 else newest


@contextmanager
def _memory_errors(device: torch.device) -> Iterator[None]:
    """Raise `RenderFailed` where the device has not enough memory."""
    from render.memory import lacks_memory

    try:
        yield
    except RenderError:
        raise
    except Exception as exc:
        if not lacks_memory(exc):
            raise
        raise RenderFailed(
            f"rank {os.environ['RANK']} has not enough memory on {device}; use more ranks, a smaller "
            "window_batch or --text-encoder cpu"
        ) from exc


def _read_request(directory: Path, number: int) -> Request | None:
    """The request of that number, if there is one yet."""
    path = request_path(directory, number)
    return Request.read(path) if path.exists() else None


@dataclass(frozen=True)
class _Work:
    """What a request is rendered with."""

    request: Request
    number: int
    device: torch.device
    models: tuple[Adapter, Adapter | None]
    observer: RankObserver
    stop: Callable[[], bool]
    """Whether to stop after the step."""

    @property
    def images(self) -> tuple[FurtherImage, ...]:
        return self.request.images


@dataclass
class _Rank:
    """What lives from one request to the next: the group, and the model that was used last."""

    events: EventSender
    stop: threading.Event
    model: LoadedModel
    elastic: ElasticGroup | None = None
    """The group; None for a rank that renders by itself only, several requests at once."""

    @property
    def group_changes(self) -> bool:
        """Whether the group has changed, or has to, since the last image was done."""
        return self.elastic is not None and self.elastic.changes_while_idle

    def render(self, request: Request, number: int) -> None:
        """Render one image with the other ranks: the group's request of this number."""
        device, models = self._prepare(request)
        with self._observed(request, number, device, models, self.stop.is_set) as work:
            assert self.elastic is not None, "a rank of a group has one"
            if request.more:
                self._render_share(work, self.elastic)
            else:
                self._render_elastic(work, self.elastic)

    def render_at_once(self, directory: Path, number: int, first: Request) -> int:
        """Render a request, and with it those that follow while they have the same weights, each as its own
        image that stops and fails alone. Returns the number of the next request."""
        from render.denoise.shared_calls import Render, SharedCalls

        device, models = self._prepare(first)

        def coming() -> Iterator[Render[None] | None]:
            nonlocal number
            while True:
                request = _read_request(directory, number)
                if request is None or request.at_once < 2 or request.weights != first.weights:
                    yield None
                else:
                    own, number = number, number + 1
                    stop = stop_path(directory, own)
                    yield partial(self._render_one, request, own, stop, device, models)

        for _ in SharedCalls(self.model.joiner, first.at_once).run(coming()):
            # Each image has sent its own end.
            pass
        return number

    def _render_one(
        self,
        request: Request,
        number: int,
        stop: Path,
        device: torch.device,
        models: tuple[Adapter, Adapter | None],
        calls: ModelCalls,
    ) -> None:
        """Render one of several requests at once, and send how it ends."""
        if request.log is not None:
            # What is printed while several images are rendered is in the log of the one that began last.
            _redirect_output(request.log)

        def stopped() -> bool:
            return self.stop.is_set() or stop.exists()

        try:
            # The model is there; its prompts are encoded.
            self.model.load(request, device)
            with self._observed(request, number, device, models, stopped) as work:
                self._render_alone(work, work.images[0], number, calls)
        except Stopped as exc:
            self.events.send_reliable(RankStopped(text=str(exc), image=number))
        except RenderError as exc:
            self.events.send_reliable(replace(failure_event(exc), image=number))
        except Exception as exc:
            # One that nobody has foreseen ends this image only, too.
            traceback.print_exc()
            failure = RenderFailed(f"{type(exc).__name__}: {exc}")
            self.events.send_reliable(replace(failure_event(failure), image=number))

    def _prepare(self, request: Request) -> tuple[torch.device, tuple[Adapter, Adapter | None]]:
        """The device and the loaded models of a request."""
        import torch

        from render.distributed import choose_device

        if request.log is not None:
            _redirect_output(request.log)
        device = choose_device(request.device, local_device())
        if device.type == "cpu":
            # Kernels split their sums by threads: another number would change the last bits.
            torch.set_num_threads(1)
        with _memory_errors(device):
            return device, self.model.load(request, device)

    @contextmanager
    def _observed(
        self,
        request: Request,
        number: int,
        device: torch.device,
        models: tuple[Adapter, Adapter | None],
        stop: Callable[[], bool],
    ) -> Iterator[_Work]:
        """The work at a request, with an observer that is closed at its end. Raises `RenderFailed` if the
        device has not enough memory."""
        from render.launch.device_memory import device_memory

        context = RankContext(
            rank=int(os.environ["RANK"]),
            slot=slot_of(request.slots),
            model=str(request.spec["model"]),
            device_memory=partial(device_memory, device),
        )
        observer = make_observer(request.observer, context)
        try:
            with _memory_errors(device):
                yield _Work(request, number, device, models, observer, stop)
        finally:
            observer.close()

    def _render_elastic(self, work: _Work, elastic: ElasticGroup) -> None:
        """Render an image with a group that may lose ranks and be joined by others."""
        tries: list[ForwardEvents] = []

        def render(group: Group, replicas: Replicas) -> None:
            first = elastic.first_of_node
            tries.append(ForwardEvents(self.events, work.observer, work.number, group.rank, first))
            self._render(work, work.images[0], tries[-1], group, replicas=replicas)

        if elastic.run(work.number, work.device, render):
            tries[-1].finish()
        elif elastic.spans_nodes:
            self._tell_finished(work)

    def _tell_finished(self, work: _Work) -> None:
        """Send that the others have finished an image: all ranks of this node may have been away then."""
        from render.distributed import SingleRankGroup
        from render.output.manifest import read_published
        from render.spec import Spec

        request, root = work.request, ""
        digest = Spec.from_mapping(request.spec).digest(request.info.digest)
        if request.output == "image":
            sink = open_sink(request.out, patience_s=request.patience_s, observer=work.observer.on_sink_call)
            published = read_published(sink, digest, SingleRankGroup())
            root = "" if published is None else published.root
        self.events.send_reliable(ImageDone(digest=digest, root=root, seconds=0.0, request=work.number))

    def _render_alone(self, work: _Work, image: FurtherImage, number: int, calls: ModelCalls) -> None:
        """Render an image by this rank alone, in calls that others share; its events carry its number."""
        from render.distributed import SingleRankGroup

        # Whoever renders an image alone is its first rank.
        forward = ForwardEvents(self.events, work.observer, work.number, 0, True, image=number)
        self._render(work, image, forward, SingleRankGroup(), calls)
        forward.finish()

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
            stop=work.stop,
            on_save=lambda result: on_event(checkpoint_event(result)),
            replicas=replicas,
            changes=None if self.elastic is None or replicas is None else self.elastic.joining,
        )
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
                calls=calls or JoinedCalls(self.model.joiner),
            )
        except (RanksLost, GroupChanges):
            # Older than what the ranks have of each other; it must not be saved over a later one.
            checkpoints.close()
            raise

    def _render_share(self, work: _Work, elastic: ElasticGroup) -> None:
        """Render this rank's images of a request that has several, by itself."""
        from render.denoise.shared_calls import SharedCalls
        from render.plan.plan import make_plan
        from render.spec import Spec

        def render(number: int, calls: ModelCalls) -> bool:
            self._render_alone(work, work.images[number], number, calls)
            return True

        at_once = make_plan(Spec.from_mapping(work.request.spec), work.request.info, 1).images_at_once
        shared = SharedCalls(self.model.joiner, at_once)

        def share(rank: int, ranks: int) -> None:
            own = range(rank, len(work.images), ranks)
            # What one image raises leaves the others: they are done by then.
            outcomes = dict(shared.run(partial(render, number) for number in own))
            for outcome in outcomes.values():
                if isinstance(outcome, Exception):
                    raise outcome

        elastic.run_apart(work.number, work.device, share)


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
