"""The model that a rank has in memory, with what lies on it: kept from one request to the next."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from render.events import Event, ModelLoaded
from render.launch.prompt_texts import PromptTexts
from render.launch.request import Request

if TYPE_CHECKING:
    import torch

    from render.models.adapter import Adapter
    from render.models.joined_calls import CallJoiner
    from render.spec import Spec
    from render.spec.embedding import Embedding
    from render.spec.lora import Lora


@dataclass
class LoadedModel:
    """The model that was used last; the next request with the same one does not load it again."""

    send: Callable[[Event], None]
    """Passes an event on to the group."""
    texts: PromptTexts
    _embeddings: tuple[tuple[str, str], ...] | None = ()
    """Learned words of the model, by digest and word."""
    _loras: tuple[tuple[str, float], ...] | None = ()
    """Those on the model, by digest and weight."""
    _controlnets: tuple[str, ...] | None = ()
    """Those beside the model, by digest."""
    _ip_adapter: tuple[str, float] | None = None
    """The one on the model, by digest and weight."""
    _loaded: tuple[tuple[Any, ...], tuple[Adapter, Adapter | None]] | None = None
    _joiner: CallJoiner | None = None
    """Of the model with its LoRA."""

    def load(self, request: Request, device: torch.device) -> tuple[Adapter, Adapter | None]:
        """The model of a request and its refiner, with what else the request has on it."""
        from render.spec import Spec

        spec = Spec.from_mapping(request.spec)
        models = self._models(request, device, spec)
        present = [model for model in models if model is not None]
        self.texts.provide(request, present, device, partial(self._put_additions, models[0], spec))
        self._set_embeddings(models[0], spec.embedding)
        self._set_loras(models[0], spec.lora)
        self._set_controlnets(models[0], spec, device)
        self._set_ip_adapter(models[0], spec, device)
        return models

    @property
    def joiner(self) -> CallJoiner:
        """Joins calls of the model that was loaded last."""
        from render.models.joined_calls import CallJoiner

        assert self._loaded is not None, "nothing was loaded"
        self._joiner = self._joiner or CallJoiner(self._loaded[1][0])
        return self._joiner

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
                self.send(ModelLoaded(seconds=time.perf_counter() - started))
        return self._loaded[1]

    def _put_additions(self, adapter: Adapter, spec: Spec, on: bool) -> None:
        """Put a request's LoRA and learned words on the model, or take all off it."""
        self._set_embeddings(adapter, spec.embedding if on else ())
        self._set_loras(adapter, spec.lora if on else ())

    def _set_controlnets(self, adapter: Adapter, spec: Spec, device: torch.device) -> None:
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
