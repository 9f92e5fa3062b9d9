"""The version of the engine's numerics, which unfinished work and manifests carry beside torch's version.

Raise `NUMERICS` with every change after which the same spec gives other bits anywhere between the first
noise and the last tile: in the noise, the layout of windows, the order or the type of a sum, a sampler, the
decoder, an encoder of tiles. Do not raise it for a release, a rename or a speed-up that keeps all bits.
tests/render/test_numerics.py lists what checks the bits.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

NUMERICS = 3
"""3: a small window by itself is evaluated in one call, with and without the prompt, and an image of one
window in calls of exactly its `window_batch`, which was a limit before; other images are the same in 2 and 3.
2: autoencoders with norms or attention are exact over the whole canvas; in 1 each decode tile had its own
statistics. Images of the built-in model and of other `AutoencoderTiny` folders are the same in 1 and 2."""
_PACKAGES = ("torch", "diffusers", "transformers", "tokenizers", "torchao", "numpy", "pillow")
_VECTOR_EXTENSIONS = ("amx_tile", "avx512f", "avx2", "avx", "sve2", "sve", "asimd")
"""From the widest down, as `/proc/cpuinfo` names them."""


def same_numerics(found: object, identity: str) -> bool:
    """Whether unfinished work of identity `found` may be continued by a render of `identity`.

    An identity ends in `numerics-N`; see `render.denoise.checkpoint.identity_of`.
    """
    return found == identity


@dataclass(frozen=True, kw_only=True)
class Numerics:
    """What decides the bits of an image beside its spec: with equal numerics they are equal."""

    numerics: int
    device: str
    """Kind of device, see `cpu_kind`, or the names of the GPUs."""
    packages: Mapping[str, str]
    """Versions of the packages that compute, draw or encode pixels."""

    @property
    def identity(self) -> str:
        """48 bits of the SHA-256 of the canonical JSON, as 12 hex digits."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def numerics_of(device: str) -> Numerics:
    """The numerics of this installation on a kind of device. Imports none of the packages."""
    return Numerics(numerics=NUMERICS, device=device, packages={name: _version(name) for name in _PACKAGES})


def numerics_identity(device: str) -> str:
    """The identity of `numerics_of(device)`."""
    return numerics_of(device).identity


def cpu_kind() -> str:
    """This machine's kind of CPU: architecture, vendor and widest vector extension.

    PyTorch's and its math libraries' kernels differ with all three, and so do the last bits.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    info: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        info.setdefault(name.strip().lower(), value.strip())
    vendor = info.get("vendor_id") or info.get("cpu implementer") or ""
    flags = set((info.get("flags") or info.get("features") or "").split())
    vectors = next((name for name in _VECTOR_EXTENSIONS if name in flags), "")
    return " ".join(part for part in ("cpu", platform.machine(), vendor, vectors) if part)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
