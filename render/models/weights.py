"""The weights of a model folder: whether they are safe and complete, and their digest. No torch.

Only safetensors are read. A pickle can run any code when it is opened, so a folder that has one without
safetensors beside it is refused, and one that has both is read from the safetensors.
"""

from __future__ import annotations

import hashlib
import json
import re
from functools import lru_cache
from pathlib import Path

from render.models.config_files import unusable

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_WEIGHTS = re.compile(r"(diffusion_pytorch_model|model)(-\d{5}-of-\d{5})?\.safetensors")
_CONFIG_ENDINGS = (".json", ".txt", ".model")


def refuse_pickles(path: Path) -> None:
    """Raise `ModelNotUsable` for a pickle that has no safetensors beside it."""
    for file in sorted(path.rglob("*")):
        if file.suffix.lower() not in PICKLES or not file.is_file():
            continue
        if not any(file.parent.glob("*.safetensors")):
            name = file.relative_to(path).as_posix()
            raise unusable(path, f"has the pickle {name} and no safetensors beside it; convert it first")


def has_all_weights(part: Path) -> bool:
    """Whether a part's folder has its weights, including every shard of a sharded checkpoint."""
    names = {file.name for file in _weight_files(part)}
    if any("-of-" not in name for name in names):
        return True
    return any(len(names) == int(name.rsplit("-of-")[1][:5]) for name in names)


def weights_digest(path: Path, parts: tuple[str, ...]) -> str:
    """SHA-256 over the sorted names and SHA-256s of every file of these parts that affects pixels."""
    files = [path / "model_index.json"]
    for part in parts:
        files += [file for file in (path / part).iterdir() if file.name.endswith(_CONFIG_ENDINGS)]
        files += _weight_files(path / part)
    lines = sorted((file.relative_to(path).as_posix(), _file_sha256(file)) for file in files)
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()


def _weight_files(part: Path) -> list[Path]:
    return sorted(file for file in part.glob("*.safetensors") if _WEIGHTS.fullmatch(file.name))


def _file_sha256(file: Path) -> str:
    stat = file.stat()
    return _hash_once(str(file.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@lru_cache(maxsize=1024)
def _hash_once(name: str, size: int, mtime_ns: int, ctime_ns: int) -> str:
    # Size and times are in the key so that a changed file is hashed again within one process.
    with open(name, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
