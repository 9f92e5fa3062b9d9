"""Super-resolution networks, loaded by spandrel from safetensors.

spandrel finds out from the weights alone which network they are of, and builds it with its own code. Its
other formats are pickles, which it reads with a list of allowed names; they are refused here like a model's.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from render.errors import BadInput
from render.models.load_errors import load_errors
from render.safetensors_file import file_sha256
from render.spec.enlarger import EnlargerFile

_TORCHVISION = "torchvision.transforms.functional"
_PROBE = 64
"""Side in pixels of the picture that a network is tried with."""


@dataclass(frozen=True)
class Enlarger:
    """A network that makes pictures `scale` times as long and as wide."""

    network: Any
    """A `spandrel.ImageModelDescriptor`, in float32."""

    @property
    def scale(self) -> int:
        return int(self.network.scale)

    def enlarge(self, pixels: Tensor) -> Tensor:
        """[1, 3, H, W] in [0, 1] -> [1, 3, scale * H, scale * W] in [0, 1], on the same device."""
        # A copy: what is made in inference mode cannot be changed in place.
        large: Tensor = self.network(pixels.to(self.network.device).float())
        return large.to(pixels.device, copy=True)


def check_enlarger(file: EnlargerFile) -> None:
    """Raise `BadInput` for a file that is not a super-resolution network. Loads it, on the CPU."""
    open_enlarger(file, torch.device("cpu"))


def open_enlarger(file: EnlargerFile, device: torch.device) -> Enlarger:
    """The network of a file; the last one is kept. Raises `BadInput`."""
    try:
        digest = file_sha256(Path(file.path))
    except OSError as exc:
        raise BadInput("enlarger", file.path, f"cannot be read ({exc.strerror}); restore it") from exc
    if digest != file.digest:
        raise BadInput("enlarger", file.path, "has changed since the job was submitted; restore it")
    return _opened(file.path, digest, device)


@lru_cache(maxsize=1)
def _opened(path: str, digest: str, device: torch.device) -> Enlarger:
    spandrel = _spandrel(path)

    def refuse(reason: str) -> BadInput:
        return BadInput("enlarger", path, f"does not load ({reason}); download it again")

    # Its networks are their authors' code, some of it written for older versions of torch.
    with warnings.catch_warnings(), load_errors(refuse, 120):
        warnings.simplefilter("ignore")
        weights = spandrel.canonicalize_state_dict(load_file(path))
        try:
            network = spandrel.ModelLoader(device).load_from_state_dict(weights)
        except spandrel.UnsupportedModelError as exc:
            fix = "is no network that spandrel knows; use a super-resolution network, e.g. ESRGAN or SwinIR"
            raise BadInput("enlarger", path, fix) from exc
    network = network.eval().float()
    _check(path, network)
    return Enlarger(network)


def _check(path: str, network: Any) -> None:
    name = network.architecture.name
    if network.purpose != "SR" or network.scale < 2:
        raise BadInput("enlarger", path, f"is a {name} that does not enlarge; use a super-resolution network")
    if (network.input_channels, network.output_channels) != (3, 3):
        channels = network.input_channels
        raise BadInput("enlarger", path, f"is a {name} of {channels} channels; use one for RGB pictures")
    probe = torch.linspace(0, 1, 3 * _PROBE**2, device=network.device).view(1, 3, _PROBE, _PROBE)
    if not torch.equal(network(probe), network(probe)):
        fix = f"is a {name}, which draws noise, so that no two pictures are equal; use another network"
        raise BadInput("enlarger", path, fix)


def _spandrel(path: str) -> Any:
    try:
        with _without_torchvision():
            import spandrel
    except ImportError as exc:
        raise BadInput("enlarger", path, "needs spandrel; run pip install 'chorale[enlarger]'") from exc
    return spandrel


@contextmanager
def _without_torchvision() -> Iterator[None]:
    """Let spandrel be imported where torchvision is missing.

    PyPI's torchvision needs CUDA's torch, so machines without a GPU often lack it. spandrel takes three names
    from it, for LaMa, which fills holes, and RestoreFormer, which restores faces: neither enlarges.
    """
    if "spandrel" in sys.modules or find_spec("torchvision") is not None:
        yield
        return
    parts = _TORCHVISION.split(".")
    names = [".".join(parts[: count + 1]) for count in range(len(parts))]
    functional = ModuleType(_TORCHVISION)
    for name in ("InterpolationMode", "rotate", "normalize"):
        setattr(functional, name, None)
    sys.modules.update({name: ModuleType(name) for name in names[:-1]} | {_TORCHVISION: functional})
    try:
        yield
    finally:
        for name in names:
            sys.modules.pop(name, None)
