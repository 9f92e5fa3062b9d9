"""The prompts of a group's requests, encoded by one rank of each node for all of them.

Text encoders take up to 16 GB and run once for a prompt. So only one rank of a node loads them: the one that
holds a lock on a file of the group's directory, which is the first one unless it has died. It writes every
prompt of a request into that directory, encoded, before it renders; the other ranks read them, the same bits.
A file system and a lock rather than a collective: ranks that render images of their own, and a rank that
joins a running group, need no one to wait for them.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from render.launch.group_directory import texts_path
from render.launch.request import FREE, ON_CPU, Request
from render.plan.stages import is_guided
from render.spec import Spec
from render.spec.reference import ReferencePicture

if TYPE_CHECKING:
    import torch

    from render.models.adapter import Adapter

_POLL_S = 0.005
_KEPT_BYTES, _KEPT_S = 256 * 2**20, 3600.0
"""Encoded prompts beyond so many bytes are deleted once they are older than so many seconds."""


@dataclass(frozen=True)
class _Prompt:
    """A prompt, and the network that it is encoded for: 0 is the model, 1 its refiner."""

    network: int
    prompt: str
    negative_prompt: str
    guided: bool
    pictures: tuple[ReferencePicture, ...] = ()
    """What the text encoder sees beside it."""

    @property
    def file(self) -> str:
        seen = [picture.digest for picture in self.pictures]
        key = [self.network, self.prompt, self.negative_prompt, self.guided, seen]
        return hashlib.sha256(json.dumps(key).encode()).hexdigest()


class PromptTexts:
    """Encodes the prompts of this rank's node, or waits for the rank that does."""

    def __init__(self, directory: Path) -> None:
        self._folder = texts_path(directory)
        self._lock: int | None = None
        if os.environ["LOCAL_RANK"] == "0":
            self._become_encoder()

    def provide(
        self,
        request: Request,
        models: Sequence[Adapter],
        device: torch.device,
        put_additions: Callable[[bool], None],
    ) -> None:
        """Give the models a request's prompts, encoded; returns when those of all its images are there.

        `put_additions` puts the request's LoRA and learned words on the model, or takes all off it.
        """
        from render.models.encoded_text import read_text

        folder = self._folder / _identity(request)
        wanted = list(_prompts(request, models))
        while not all((folder / prompt.file).exists() for prompt in wanted):
            if self._become_encoder():
                self._encode(folder, request, models, device, put_additions)
            else:
                time.sleep(_POLL_S)
        for number, model in enumerate(models):

            def read(
                prompt: str,
                negative_prompt: str,
                guided: bool,
                pictures: Sequence[ReferencePicture],
                network: int = number,
            ) -> Any:
                asked = _Prompt(network, prompt, negative_prompt, guided, tuple(pictures))
                return read_text(folder / asked.file, device)

            model.texts = read

    def _become_encoder(self) -> bool:
        """Take the lock if nobody holds it; whether this rank encodes."""
        if self._lock is None:
            self._folder.mkdir(exist_ok=True)
            file = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(file)
                return False
            self._lock = file
        return True

    def _encode(
        self,
        folder: Path,
        request: Request,
        models: Sequence[Adapter],
        device: torch.device,
        put_additions: Callable[[bool], None],
    ) -> None:
        """Write all prompts of the request that are not there yet."""
        import torch

        from render.models.encoded_text import text_bytes
        from render.models.references import seeing
        from render.models.text_encoders import encoding_on

        place = torch.device("cpu") if request.text_encoder == ON_CPU else device
        with self._encoders(request, models, place, device, put_additions):
            folder.mkdir(parents=True, exist_ok=True)
            for prompt in _prompts(request, models):
                target = folder / prompt.file
                if target.exists():
                    os.utime(target)
                    continue
                with encoding_on(models[prompt.network], place) as adapter:
                    encoder = seeing(adapter, prompt.pictures)
                    found = encoder.encode_prompt(prompt.prompt, prompt.negative_prompt, prompt.guided)
                part = target.with_suffix(".part")
                part.write_bytes(text_bytes(found))
                part.rename(target)
        self._forget()

    @contextlib.contextmanager
    def _encoders(
        self,
        request: Request,
        models: Sequence[Adapter],
        place: torch.device,
        device: torch.device,
        put_additions: Callable[[bool], None],
    ) -> Iterator[None]:
        """The models with their text encoders, which are loaded if they are not there."""
        from render.models.skeletons import has_skeletons
        from render.models.text_encoders import put_text_encoders, remove_text_encoders, without_network

        paths = [path for path in (request.folders.model, request.folders.refiner) if path is not None]
        spec = Spec.from_mapping(request.spec)
        missing = [
            (model, path) for model, path in zip(models, paths, strict=True) if has_skeletons(model.pipeline)
        ]
        with contextlib.ExitStack() as stack:
            if missing:
                # They are put on again, on all networks of the model.
                put_additions(False)
                if request.text_encoder == FREE and device.type != "cpu":
                    for model in models:
                        stack.enter_context(without_network(model.pipeline, device))
                for model, path in missing:
                    put_text_encoders(model.pipeline, path, place, spec.dtype, spec.quantize)
            put_additions(True)
            yield
            if request.text_encoder == FREE:
                put_additions(False)
                for model, path in zip(models, paths, strict=True):
                    remove_text_encoders(model.pipeline, path)

    def _forget(self) -> None:
        """Delete what was needed longest ago, so that a group of many requests does not fill the disk."""
        files = [(each.stat(), each) for each in self._folder.glob("*/*")]
        size = 0
        for stat, file in sorted(files, key=lambda pair: pair[0].st_mtime, reverse=True):
            size += stat.st_size
            if size > _KEPT_BYTES and time.time() - stat.st_mtime > _KEPT_S:
                file.unlink()


def _identity(request: Request) -> str:
    """Names everything besides the prompt that decides its encoding: model, number format, LoRA, learned
    words."""
    spec = Spec.from_mapping(request.spec)
    additions = [[each.digest, each.weight] for each in spec.lora]
    words = [[each.digest, each.word] for each in spec.embedding]
    decisive = [request.info.digest, spec.dtype, spec.quantize, request.text_encoder, additions, words]
    return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:16]


def _prompts(request: Request, models: Sequence[Adapter]) -> Iterator[_Prompt]:
    """The prompts of a request's images, each once, in the images' order."""
    from render.denoise.stage_models import prompts_of
    from render.models.references import seeing

    seen = set()
    for image in request.images:
        spec = Spec.from_mapping(image.spec)
        guided = is_guided(spec, request.info)
        # An IP-Adapter sees the pictures by itself, and a refiner none.
        is_seen = hasattr(seeing(models[0], spec.reference), "texts")
        for prompt in prompts_of(spec):
            for network in range(len(models)):
                pictures = spec.reference if is_seen and not network else ()
                found = _Prompt(network, prompt, spec.negative_prompt, guided, pictures)
                if found not in seen:
                    seen.add(found)
                    yield found
