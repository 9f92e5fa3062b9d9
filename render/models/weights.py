"""The weights of a model folder: which files they are, whether they are safe and complete, and their digest.
No torch.

Only safetensors are read. A pickle can run any code when it is opened, so a folder that has one without
safetensors beside it is refused, and one that has both is read from the safetensors.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from render.models.config_files import unusable
from render.safetensors_file import file_problem, file_sha256, is_lfs_pointer, read_header
from render.spec.files import PICKLES

_WEIGHTS = re.compile(
    r"(?P<stem>diffusion_pytorch_model|model)"
    r"(\.(?P<variant>\w+))?(-(?P<shard>\d{5})-of-(?P<shards>\d{5}))?(\.(?P<late>\w+))?\.(safetensors|gguf)"
)
"""With or without a variant, whole or a shard; libraries write the variant before or after the number."""
_PREFERRED = ("", "fp16", "bf16")
"""The variants in order of preference; others follow in the order of their names."""
_CONFIG_ENDINGS = (".json", ".txt", ".model", ".jinja")


@dataclass(frozen=True)
class WeightSet:
    """The files that hold a part's weights in one variant."""

    variant: str
    files: tuple[Path, ...]

    @property
    def is_whole(self) -> bool:
        """Whether it is one file, or has every shard."""
        totals = [int(file.name.rsplit("-of-")[1][:5]) for file in self.files if "-of-" in file.name]
        return len(totals) < len(self.files) or len(totals) in totals

    @property
    def problem(self) -> str | None:
        """What is wrong with its first damaged file or its index, after its name; None if all are sound."""
        for file in self.files:
            if (problem := file_problem(file)) is not None:
                return f"{file.parent.name}/{file.name} {problem}"
        return self._index_problem

    @property
    def _index_problem(self) -> str | None:
        """What its shards lack that their index names; None without shards, or an index."""
        match = _WEIGHTS.fullmatch(self.files[0].name)
        assert match is not None
        if match["shard"] is None:
            return None
        index = self.files[0].with_name(f"{match['stem']}.safetensors.index.json")
        named = _places(index)
        lost = sorted(set(named).difference(*(read_header(file) for file in self.files)))
        if not lost or not set(named.values()) <= {file.name for file in self.files}:
            return None
        return (
            f"{index.parent.name}/{index.name} that names {lost[0]}, which is in no shard; download it again"
        )


def refuse_pickles(path: Path) -> None:
    """Raise `ModelNotUsable` for a pickle that has no safetensors beside it."""
    for file in sorted(path.rglob("*")):
        if file.suffix.lower() not in PICKLES or not file.is_file():
            continue
        if not any(file.parent.glob("*.safetensors")):
            name = file.relative_to(path).as_posix()
            raise unusable(
                path,
                f"has the pickle {name} and no safetensors beside it; convert or remove it",
            )


def check_weights(path: Path, part: str) -> None:
    """Raise `ModelNotUsable` unless a part's folder has a whole and sound set of weights."""
    whole = [each for each in _weight_sets(path / part) if each.is_whole]
    if not whole:
        raise unusable(path, f"lacks {part}/ with a whole set of safetensors; download the model again")
    problems = [each.problem for each in whole]
    if None not in problems:
        raise unusable(path, f"has the file {problems[0]}")


def check_pointers(path: Path, part: str) -> None:
    """Raise `ModelNotUsable` for a configuration file of a part that is a git-lfs pointer."""
    for file in _config_files(path / part):
        if is_lfs_pointer(file):
            raise unusable(path, f"has the file {part}/{file.name} {file_problem(file)}")


def weight_files(part: Path) -> tuple[Path, ...]:
    """The files that a part's weights are read from; of several variants, the first usable one."""
    sets = [each for each in _weight_sets(part) if each.is_whole]
    usable = next((each for each in sets if each.problem is None), None)
    return () if usable is None else usable.files


@contextlib.contextmanager
def loadable(part: Path) -> Iterator[Path]:
    """A folder with a part's configuration and weights under the names that the libraries look for.

    It is the part's own where they are named so. For a variant, and for shards without their index, it is a
    temporary one of links.
    """
    files = weight_files(part)
    if all(_has_stock_name(file) for file in files):
        yield part
        return
    with tempfile.TemporaryDirectory(prefix="chorale-weights-") as name:
        folder = Path(name)
        for config in _config_files(part):
            if not config.name.endswith(".index.json"):
                (folder / config.name).symlink_to(config.resolve())
        _link_weights(folder, files)
        yield folder


def files_of(path: Path, parts: tuple[str, ...]) -> list[Path]:
    """Every file of these parts that affects pixels."""
    files = [path / "model_index.json"]
    for part in parts:
        files += [*_config_files(path / part), *weight_files(path / part)]
    return files


def weights_digest(path: Path, parts: tuple[str, ...]) -> str:
    """SHA-256 over the sorted names and SHA-256s of every file of these parts that affects pixels."""
    files = files_of(path, parts)
    lines = sorted((file.relative_to(path).as_posix(), file_sha256(file)) for file in files)
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()


def part_digest(part: Path) -> str:
    """The same of one folder by itself."""
    files = [*_config_files(part), *weight_files(part)]
    lines = sorted((file.name, file_sha256(file)) for file in files)
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()


def _config_files(part: Path) -> list[Path]:
    if not part.is_dir():
        return []
    return [file for file in part.iterdir() if file.name.endswith(_CONFIG_ENDINGS)]


def _weight_sets(part: Path) -> list[WeightSet]:
    sets: dict[str, list[Path]] = {}
    for file in sorted([*part.glob("*.safetensors"), *part.glob("*.gguf")]):
        if (match := _WEIGHTS.fullmatch(file.name)) is not None:
            sets.setdefault(match["variant"] or match["late"] or "", []).append(file)
    found = [WeightSet(variant, tuple(files)) for variant, files in sets.items()]
    return sorted(found, key=lambda each: (_rank_of(each.variant), each.variant))


def _rank_of(variant: str) -> int:
    return _PREFERRED.index(variant) if variant in _PREFERRED else len(_PREFERRED)


def _has_stock_name(file: Path) -> bool:
    match = _WEIGHTS.fullmatch(file.name)
    assert match is not None, "only such files are weights"
    if match["variant"] or match["late"]:
        return False
    index = file.with_name(f"{match['stem']}.safetensors.index.json")
    if match["shard"] is None:
        # diffusers prefers the shards that an index names, also where they are not there.
        return not index.is_file()
    return index.is_file() and _is_index_of(file.parent, index)


def _is_index_of(folder: Path, index: Path) -> bool:
    """Whether all shards that an index names are there, and it names all that they hold: the libraries take
    what it leaves out for missing."""
    places = _places(index)
    shards = {folder / name for name in set(places.values())}
    if not shards or not all(shard.is_file() for shard in shards):
        return False
    return set(places) == {name for shard in shards for name in read_header(shard)}


def _places(index: Path) -> dict[str, str]:
    """The shard of each tensor, as an index says; empty where it cannot be read."""
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {str(name): str(shard) for name, shard in places.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _link_weights(folder: Path, files: tuple[Path, ...]) -> None:
    match = _WEIGHTS.fullmatch(files[0].name)
    assert match is not None
    stem, single = match["stem"], next((file for file in files if "-of-" not in file.name), None)
    if single is not None:
        (folder / f"{stem}.safetensors").symlink_to(single.resolve())
        return
    index: dict[str, Any] = {"metadata": {}, "weight_map": {}}
    for number, file in enumerate(files, 1):
        name = f"{stem}-{number:05}-of-{len(files):05}.safetensors"
        (folder / name).symlink_to(file.resolve())
        index["weight_map"] |= dict.fromkeys(read_header(file), name)
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
