"""Images that are rendered together share model calls: continuous batching for images of one model.

Each image is rendered by its own thread, exactly as alone, up to its next model calls. When all images wait
for theirs, the calls of all run joined (`render.models.joined_calls`), and the images go on. Only one thread
runs at a time. An image joins when another leaves; each may be at another step. What one image raises ends
that image only.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from torch import Tensor

from render.denoise.model_calls import ModelCalls, raise_first
from render.models.adapter import Adapter
from render.models.joined_calls import CallJoiner
from render.models.model_call import ModelCall

Result = TypeVar("Result")
Render = Callable[[ModelCalls], Result]
"""Renders one image with the given calls."""


class _Abandoned(BaseException):
    """The thread of an image ends, since the images are not waited for any more."""


@dataclass(frozen=True)
class _Waiting:
    """Calls of one image that have not run yet."""

    adapter: Adapter
    calls: Sequence[ModelCall]
    most_rows: int

    @property
    def rows(self) -> int:
        return sum(len(call.latents) for call in self.calls)


@dataclass(kw_only=True)
class _Image(Generic[Result]):
    """One image and its thread. It implements `ModelCalls` for the thread."""

    number: int
    waiting: _Waiting | None = None
    found: list[Tensor | Exception] = field(default_factory=list)
    seconds: float = 0.0
    result: Result | BaseException | None = None
    done: bool = False
    abandoned: bool = False
    _go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    _back: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def start(self, render: Render[Result]) -> None:
        # Kernels split their sums by threads, whose number belongs to the thread that calls them.
        arguments = render, torch.get_num_threads()
        threading.Thread(target=self._main, args=arguments, daemon=True, name=f"image-{self.number}").start()

    def resume(self) -> None:
        """Let the thread run until it waits for model calls or is done."""
        self._go.release()
        self._back.acquire()

    def abandon(self) -> None:
        """End the thread, wherever it is."""
        self.abandoned = True
        self.resume()

    def run(self, adapter: Adapter, calls: Sequence[ModelCall], most_rows: int) -> tuple[list[Tensor], float]:
        self.waiting = _Waiting(adapter, calls, most_rows)
        self._back.release()
        self._wait()
        found, self.found = self.found, []
        return raise_first(found), self.seconds

    def _main(self, render: Render[Result], threads: int) -> None:
        try:
            self._wait()
            torch.set_num_threads(threads)
            self.result = render(self)
        except BaseException as exc:
            self.result = exc
        finally:
            self.waiting, self.done = None, True
            self._back.release()

    def _wait(self) -> None:
        self._go.acquire()
        if self.abandoned:
            raise _Abandoned


class SharedCalls:
    """Renders images of one loaded model, `most_images` at a time."""

    def __init__(self, joiner: CallJoiner, most_images: int) -> None:
        self._joiner, self._most_images = joiner, most_images

    def run(self, renders: Iterable[Render[Result] | None]) -> Iterator[tuple[int, Result | Exception]]:
        """The place in `renders` and the result of each image, or what it raised, in the order in which they
        end.

        The next image is taken from `renders` when there is room for it. None says that there is none yet; it
        ends the run when no image is left. An error that is not an `Exception`, as a KeyboardInterrupt, ends
        all.
        """
        coming, active = enumerate(renders), list[_Image[Result]]()
        try:
            while True:
                while len(active) < self._most_images:
                    number, render = next(coming, (0, None))
                    if render is None:
                        break
                    image: _Image[Result] = _Image(number=number)
                    image.start(render)
                    active.append(image)
                if not active:
                    return
                for image in list(active):
                    image.resume()
                    if image.done:
                        active.remove(image)
                        outcome = _outcome(image)
                        yield image.number, outcome
                self._run_calls([image for image in active if image.waiting is not None])
        finally:
            for image in active:
                image.abandon()

    def _run_calls(self, images: Sequence[_Image[Result]]) -> None:
        """Run the calls that all images wait for; those with the same limits may run as one."""
        alike: dict[tuple[int, int], list[_Image[Result]]] = {}
        for image in images:
            assert image.waiting is not None
            alike.setdefault((id(image.waiting.adapter), image.waiting.most_rows), []).append(image)
        for group in alike.values():
            waiting = [image.waiting for image in group if image.waiting is not None]
            started = time.perf_counter()
            calls = [call for each in waiting for call in each.calls]
            found = iter(self._joiner.run(waiting[0].adapter, calls, waiting[0].most_rows))
            seconds = (time.perf_counter() - started) / sum(each.rows for each in waiting)
            for image, each in zip(group, waiting, strict=True):
                image.found = [next(found) for _ in each.calls]
                image.seconds, image.waiting = seconds * each.rows, None


def _outcome(image: _Image[Result]) -> Result | Exception:
    if isinstance(image.result, BaseException) and not isinstance(image.result, Exception):
        raise image.result
    assert image.result is not None or image.done
    return image.result  # type: ignore[return-value]
