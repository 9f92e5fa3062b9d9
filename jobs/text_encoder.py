"""Where the text encoders of a render are: what a flag, or `CHORALE_TEXT_ENCODER`, means on this machine."""

from __future__ import annotations

from infra.settings import read_settings
from render.errors import BadInput
from render.launch.gpus import smallest_memory_bytes, visible_gpus
from render.launch.request import ON_CPU, ON_DEVICE, TEXT_ENCODERS
from render.models.model_paths import ModelPaths
from render.models.weight_memory import weight_bytes
from render.spec import Spec

AUTO = "auto"
CHOICES = (AUTO, *TEXT_ENCODERS)
_ROOM = 0.8
"""Share of a GPU that weights may fill; the rest is for what is computed."""


def node_text_encoder() -> str:
    """The setting of this node, for jobs of a farm: one of `TEXT_ENCODERS`.

    `auto` is the device there: where it does not fit, the choice would decide bits that the farm takes for
    equal on all nodes of one kind. Raises `BadInput`.
    """
    given = read_settings({}).text_encoder
    if given not in CHOICES:
        raise BadInput("CHORALE_TEXT_ENCODER", given, f"is unknown; use one of {', '.join(CHOICES)}")
    return ON_DEVICE if given == AUTO else given


def resolve_text_encoder(wanted: str | None, paths: ModelPaths, spec: Spec, device: str) -> str:
    """One of `TEXT_ENCODERS` for a render on this machine.

    `wanted` is a flag's value, or None for the node's setting. `device` is auto, cpu or cuda. `auto` is the
    device where all weights fit into its memory, else the CPU. Raises `BadInput`.
    """
    wanted = wanted or read_settings({}).text_encoder
    if wanted not in CHOICES:
        raise BadInput("text-encoder", wanted, f"is unknown; use one of {', '.join(CHOICES)}")
    if wanted != AUTO:
        return wanted
    memory = None if device == "cpu" or not visible_gpus() else smallest_memory_bytes()
    if memory is None or weight_bytes(paths, spec.dtype, spec.quantize) <= _ROOM * memory:
        return ON_DEVICE
    return ON_CPU
