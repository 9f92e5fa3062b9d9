"""The header of a safetensors file: what is in the file, and whether all of it is there. No torch.

The format: 8 bytes with the header's length, the header in JSON, then the tensors' bytes
(https://huggingface.co/docs/safetensors).
"""

from __future__ import annotations

import hashlib
import json
import struct
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from render.errors import first_line
from render.gguf_file import gguf_header, gguf_problem, is_gguf

_LFS = b"version https://git-lfs.github.com/spec/"
_LARGEST_POINTER = 1024
LARGEST_HEADER = 100_000_000
"""Bytes; the library refuses larger ones."""
_DTYPES = {"F16": "float16", "BF16": "bfloat16"}
"""Half precision as the header names it, and as a spec does."""
_told: dict[tuple[str, int, int, int], str] = {}
"""See `remember_sha256`: SHA-256 by path, size and times."""


def is_lfs_pointer(file: Path) -> bool:
    """Whether a file is the pointer that git leaves where git-lfs has not fetched the file itself."""
    try:
        if file.stat().st_size > _LARGEST_POINTER:
            return False
        with file.open("rb") as stream:
            return stream.read(len(_LFS)) == _LFS
    except OSError:
        return False


def file_problem(file: Path) -> str | None:
    """What is wrong with a file that should be safetensors, and what to do; None if it is sound.

    The header is checked against the file's size. The tensors are not read. It may be GGUF.
    """
    try:
        stat = file.stat()
    except OSError as exc:
        return f"that cannot be read ({exc.strerror}); check its permissions"
    if is_gguf(file) and not is_lfs_pointer(file):
        return gguf_problem(file)
    return _problem(str(file), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def read_header(file: Path) -> dict[str, dict[str, Any]]:
    """The tensors of a sound file by name, each with `dtype`, `shape` and, but for GGUF, `data_offsets`."""
    if is_gguf(file):
        return gguf_header(file)
    header = _header(file)
    header.pop("__metadata__", None)
    return header


def read_metadata(file: Path) -> dict[str, str]:
    """The free text that whoever wrote a sound file has put beside its tensors."""
    return {} if is_gguf(file) else dict(_header(file).get("__metadata__", {}))


def dtype_of(files: tuple[Path, ...]) -> str:
    """The number format of most of the tensors' bytes: float16, bfloat16, or float32 for any other."""
    sizes: dict[str, int] = {}
    for file in files:
        for tensor in read_header(file).values():
            begin, end = tensor.get("data_offsets", (0, 0))
            sizes[tensor["dtype"]] = sizes.get(tensor["dtype"], 0) + end - begin
    most = max(sizes, key=lambda name: sizes[name], default="F32")
    return _DTYPES.get(most, "float32")


def file_sha256(file: Path) -> str:
    """The SHA-256 of any file; one that has not changed is read once in a process."""
    stat = file.stat()
    key = str(file.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
    return _told.get(key) or _hash_once(*key)


def remember_sha256(file: Path, sha256: str) -> None:
    """Take a file's SHA-256 from whoever knows it, until the file changes; it is not read in this process."""
    stat = file.stat()
    _told[(str(file.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)] = sha256


def _header(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header: dict[str, Any] = json.loads(stream.read(length))
    return header


@lru_cache(maxsize=1024)
def _hash_once(name: str, size: int, mtime_ns: int, ctime_ns: int) -> str:
    # Size and times are in the key so that a changed file is hashed again within one process.
    with open(name, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@lru_cache(maxsize=4096)
def _problem(name: str, size: int, mtime_ns: int, ctime_ns: int) -> str | None:
    # Size and times are in the key so that a changed file is checked again within one process.
    if is_lfs_pointer(Path(name)):
        return "that is only a git-lfs pointer; run git lfs pull in the model's repository"
    if size == 0:
        return "that is empty; download it again"
    try:
        with open(name, "rb") as stream:
            begin = stream.read(64)
        if begin.lstrip()[:1] == b"<":
            return "that is a web page, not safetensors; download the file itself"
        if begin[:2] in (b"PK", b"\x80\x02"):
            return "that is a pickle under the name of safetensors; convert it to safetensors first"
        with safe_open(name, framework="numpy"):
            return None
    except OSError as exc:
        return f"that cannot be read ({exc.strerror}); check its permissions"
    except SafetensorError as exc:
        whole = _whole_size(name)
        if whole is not None and whole > size:
            return f"that is cut off ({size:,} of {whole:,} bytes); download it again"
        reason = first_line(exc, None).removeprefix("Error while deserializing header: ")
        return f"that is damaged ({reason[:120]}); download it again"


def _whole_size(name: str) -> int | None:
    """The size that the header gives its file, in bytes; None if it cannot be read."""
    try:
        with open(name, "rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > LARGEST_HEADER:
                return None
            text = stream.read(length)
        if len(text) < length:
            return 8 + int(length)
        tensors = [value for key, value in json.loads(text).items() if key != "__metadata__"]
        return 8 + int(length) + max((int(tensor["data_offsets"][1]) for tensor in tensors), default=0)
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError, IndexError):
        return None
