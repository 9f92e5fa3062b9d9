"""Text encoders without weights, for ranks that do not encode prompts.

Text encoders may be larger than the network and are needed once for each prompt, so one rank of a node has
them. The pipelines of the others have skeletons in their place: the same modules on torch's device `meta`,
which take no memory.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import nn

from render.models.config_files import read_json
from render.models.folder import LIBRARIES, text_parts

_apart: ContextVar[bool] = ContextVar("text encoders apart", default=False)


@contextmanager
def text_encoders_apart() -> Iterator[None]:
    """While it is open, pipelines that `render.models.loading` loads have skeletons for text encoders."""
    token = _apart.set(True)
    try:
        yield
    finally:
        _apart.reset(token)


def text_encoders_are_apart() -> bool:
    """Whether `text_encoders_apart` is open."""
    return _apart.get()


def put_skeletons(pipeline: Any, path: Path) -> None:
    """Give a pipeline skeletons for text encoders."""
    for part, (library, class_name) in text_parts(path).items():
        network_class = getattr(importlib.import_module(LIBRARIES[library]), class_name)
        config = network_class.config_class.from_dict(read_json(path, f"{part}/config.json"))
        with torch.device("meta") as meta:
            # ChatGLM's puts its modules on the CPU unless it is told otherwise.
            options = {"device": meta} if class_name == "ChatGLMModel" else {}
            skeleton = network_class(config, **options)
        pipeline.register_modules(**{part: skeleton.to("meta").eval()})


def is_skeleton(network: Any) -> bool:
    """Whether a network of a pipeline is a skeleton."""
    return isinstance(network, nn.Module) and any(parameter.is_meta for parameter in network.parameters())


def has_skeletons(pipeline: Any) -> bool:
    """Whether any network of a pipeline is a skeleton."""
    return any(is_skeleton(network) for network in pipeline.components.values())
