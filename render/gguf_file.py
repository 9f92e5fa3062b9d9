"""The header of a GGUF file: its tensors, and whether all of them are there. No torch.

The format is llama.cpp's (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), read by its `gguf`
package, which is an extra.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from render.errors import first_line

SUFFIX = ".gguf"
GGUF_TYPES = (
    *("F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_1", "Q5_0", "Q5_K", "Q4_1", "Q4_0", "Q4_K", "Q3_K", "Q2_K"),
    *("IQ4_NL", "IQ4_XS"),
)
"""Those that diffusers computes with."""
_MAGIC = b"GGUF"
_MOST = 1_000_000
"""Tensors or entries of a header; more are damage."""


def is_gguf(file: Path) -> bool:
    """Whether a file's name says so."""
    return file.suffix.lower() == SUFFIX


def gguf_problem(file: Path) -> str | None:
    """What is wrong with a GGUF file, and what to do; None if it is sound. The tensors are not read."""
    if find_spec("gguf") is None:
        return "in GGUF, which needs a package; pip install 'chorale[gguf]'"
    stat = file.stat()
    return _problem(str(file), stat.st_size, stat.st_mtime_ns)


def gguf_header(file: Path) -> dict[str, dict[str, Any]]:
    """The tensors of a sound file by name, each with `dtype` and `shape`, as `read_header` gives them."""
    return {
        tensor.name: {
            "dtype": tensor.tensor_type.name,
            "shape": [int(side) for side in reversed(tensor.shape)],
        }
        for tensor in _reader(file).tensors
    }


def _reader(file: Path) -> Any:
    from gguf import GGUFReader

    return GGUFReader(file)


@lru_cache(maxsize=256)
def _problem(name: str, size: int, mtime_ns: int) -> str | None:
    # Size and time are in the key so that a changed file is checked again within one process.
    with open(name, "rb") as stream:
        start = stream.read(24)
    if start[:4] != _MAGIC or len(start) < 24:
        return "that is not GGUF; download it again"
    counts = [int.from_bytes(start[8:16], "little"), int.from_bytes(start[16:24], "little")]
    if max(counts) > _MOST:
        return f"that is damaged (its header speaks of {max(counts):,} entries); download it again"
    try:
        _reader(Path(name))
    except (ValueError, IndexError, KeyError, OSError, OverflowError, MemoryError, UnicodeDecodeError) as exc:
        reason = first_line(exc, 120)
        return f"that is cut off or damaged ({reason}); download it again"
    return None
