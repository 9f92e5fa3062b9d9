"""A rank that renders several requests at once: each has the root that it has alone, and ends by itself."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from render.distributed import SingleRankGroup
from render.engine import render_image
from render.events import Event, ImageDone, RankFailed, RankStopped, StepDone
from render.launch.event_channel import EventSender
from render.launch.group_directory import request_path, stop_path
from render.launch.loaded_model import LoadedModel
from render.launch.prompt_texts import PromptTexts
from render.launch.rank import _Rank, first_request
from render.launch.request import Request
from render.models.folder import read_model_info, resolve_model
from render.models.model_paths import ModelPaths
from render.spec import Spec
from tests.support.sinks import MemorySink

CPU = torch.device("cpu")
SMALL = {"prompt": "a vase", "width": 128, "height": 128, "tile_size": 128, "dtype": "float32"}
KINDS: list[dict[str, Any]] = [
    {"steps": 6},
    {"steps": 900},
    {"steps": 3, "sampler": "euler"},
    {"steps": 2, "guidance_scale": 1.0},
    {"steps": 4, "width": 160, "format": "webp"},
    {"steps": 3, "window_batch": 4},
]
STOPPED, REFUSED = 2, 3
"""Numbers of the request that is stopped, and of the one whose image cannot be written."""


class Recorder:
    """In place of the socket to the group."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def send(self, event: Event) -> None:
        self.events.append(event)

    send_reliable = send


@pytest.fixture
def rank(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[_Rank]:
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    threads = torch.get_num_threads()
    events = Recorder()
    yield _Rank(cast(EventSender, events), threading.Event(), LoadedModel(events.send, PromptTexts(tmp_path)))
    torch.set_num_threads(threads)


def test_each_request_has_its_own_pixels_and_its_own_end(rank: _Rank, tmp_path: Path) -> None:
    model = resolve_model("builtin")
    specs = [Spec.from_mapping(SMALL | kind | {"seed": seed}) for seed, kind in enumerate(KINDS)]
    other = Spec.from_mapping(SMALL | {"dtype": "bfloat16"})
    for number, spec in enumerate([*specs, other], 1):
        request = Request(
            spec=spec.to_dict(),
            folders=ModelPaths(model=model),
            info=read_model_info(model),
            device="cpu",
            out=str(tmp_path / f"image-{number}"),
            last=False,
            at_once=3,
        )
        request.write(request_path(tmp_path, number))
    stop_path(tmp_path, STOPPED).touch()
    (tmp_path / f"image-{REFUSED}").write_text("in the way")
    first = Request.read(request_path(tmp_path, 1))
    assert rank.render_at_once(tmp_path, 1, first) == len(specs) + 1, "another dtype is not joined"

    events = cast(Recorder, rank.events).events
    roots = {event.image: event.root for event in events if isinstance(event, ImageDone)}
    assert [event.image for event in events if isinstance(event, RankStopped)] == [STOPPED]
    assert [event.image for event in events if isinstance(event, RankFailed)] == [REFUSED]
    stepped = [event.image for event in events if isinstance(event, StepDone)]
    assert stepped.index(4) < len(stepped) - stepped[::-1].index(1), "a later request begins beside the first"
    adapter, _ = rank.model.load(first, CPU)
    alone = {
        number: render_image(spec, adapter, SingleRankGroup(), MemorySink(), device=CPU).root
        for number, spec in enumerate(specs, 1)
        if number not in (STOPPED, REFUSED)
    }
    assert roots == alone


@pytest.mark.parametrize(("at_once", "first"), [([1], 1), ([1, 1, 1], 3), ([16] * 15, 1), ([16, 16, 1], 3)])
def test_where_a_rank_begins(at_once: list[int], first: int, tmp_path: Path) -> None:
    model = resolve_model("builtin")
    for number, images in enumerate(at_once, 1):
        request = Request(
            spec=SMALL,
            folders=ModelPaths(model=model),
            info=read_model_info(model),
            device="cpu",
            out=str(tmp_path),
            last=False,
            at_once=images,
        )
        request.write(request_path(tmp_path, number))
    assert first_request(tmp_path) == first
