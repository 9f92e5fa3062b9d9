"""A single file completed by a folder (`--base`): a folder of links that is read as any other. No torch.

The network comes from the file, and so do a text encoder and an autoencoder if the file holds them in a form
that diffusers' loaders know; all else is the folder's: tokenizers, scheduler, configurations. The folder of
links is kept in the user's cache, under a name that stands for both, so that every process of a machine finds
it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from render.errors import ModelNotUsable
from render.models.config_files import JOINED, read_json
from render.models.original_layouts import OriginalNetwork, original_network, parts_of
from render.models.registry import BASES, UNUSED_PARTS
from render.models.single_file import UNKNOWN, checked_header, set_prediction
from render.safetensors_file import read_metadata

_VERSION = 1
"""Of what such a folder holds."""
_OF_DIFFUSERS = ("unet", "transformer", "vae")


def join_base(file: Path, base: Path) -> Path:
    """The folder of links for a single file and a model folder; made if it is not there yet.

    Raises `ModelNotUsable` for a file or a folder that cannot be used, or that do not belong together.
    """
    target = _cache() / _key(file, base)
    if target.is_dir():
        return target
    header = checked_header(file)
    network = original_network(header)
    if network is None:
        raise ModelNotUsable("model", str(file), UNKNOWN)
    index = _read(base, "model_index.json")
    _check_class(network, index, base)
    parts = [part for part in parts_of(network, header, _class(index, "vae")) if _class(index, part)]
    documents: dict[str, Any] = {JOINED: {"file": str(file), "base": str(base), "parts": parts}}
    part = network.layout.part
    documents[f"{part}/config.json"] = _configuration(network, file, base)
    scheduler = _read(base, "scheduler/scheduler_config.json")
    documents["scheduler/scheduler_config.json"] = scheduler
    if part == "unet":
        set_prediction(scheduler, documents["unet/config.json"], header, read_metadata(file))
    with _new_folder(target, base) as folder:
        _link(folder, file, base, index, parts, documents)
    return target


def base_files(file: Path, base: Path) -> list[Path]:
    """The files of the folder `base` that complete a single file, sorted. Raises as `join_base`."""
    joined = join_base(file, base)
    links = (each.readlink() for each in joined.rglob("*") if each.is_symlink())
    found = {link for link in links if link.is_relative_to(base) and link != file}
    # In their place the folder of links has documents of its own.
    written = (base / each.relative_to(joined) for each in joined.glob("*/*") if not each.is_symlink())
    return sorted(found | {each for each in written if each.is_file()})


def original_file(path: Path, part: str) -> Path | None:
    """The single file that holds the weights of a folder's part under its trainers' names, if one does."""
    with contextlib.suppress(OSError, ValueError):
        document = json.loads((path / JOINED).read_text(encoding="utf-8"))
        if part in document["parts"]:
            return Path(document["file"])
    return None


def _read(base: Path, name: str) -> dict[str, Any]:
    try:
        return read_json(base, name)
    except ModelNotUsable as exc:
        raise ModelNotUsable("base", exc.value, exc.fix) from exc


def _class(index: dict[str, Any], part: str) -> str:
    entry = index.get(part)
    return str(entry[1]) if isinstance(entry, list) and len(entry) == 2 and entry[1] else ""


def _check_class(network: OriginalNetwork, index: dict[str, Any], base: Path) -> None:
    name = index.get("_class_name")
    if BASES.get(str(name), name) not in network.layout.pipelines:
        wanted = " or ".join(network.layout.pipelines)
        fix = f"is a {name!r}, and the model is a {network.layout.name} network; give a folder of {wanted}"
        raise ModelNotUsable("base", str(base), fix)


def _configuration(network: OriginalNetwork, file: Path, base: Path) -> dict[str, Any]:
    """The folder's configuration of the network, with what the file's tensors say."""
    part = network.layout.part
    config = _read(base, f"{part}/config.json")
    try:
        put, agreed = network.configuration(config)
    except KeyError as exc:
        raise ModelNotUsable(
            "model", str(file), f"lacks the weight {exc.args[0]}; download it again"
        ) from exc
    except ValueError as exc:
        raise ModelNotUsable("model", str(file), "has weights of other shapes; download it again") from exc
    for name, value in agreed.items():
        if config.get(name, value) != value:
            fix = (
                f"has {name} {config[name]!r} in {part}/config.json, and the model {value!r}; give the "
                "folder of the model that the file was made from"
            )
            raise ModelNotUsable("base", str(base), fix)
    return config | dict(agreed) | dict(put)


def _cache() -> Path:
    given = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(given) if given else Path.home() / ".cache") / "chorale" / "joined"
    except RuntimeError:  # this user has no home
        return Path(tempfile.gettempdir()) / f"chorale-joined-{os.getuid()}"


def _key(file: Path, base: Path) -> str:
    """Stands for the file, and for every file of the folder, as they are now."""
    files = [file, *sorted(base.glob("*")), *sorted(base.glob("*/*"))]
    lines: list[Any] = [_VERSION, str(file.absolute()), str(base.absolute())]
    for each in files:
        with contextlib.suppress(OSError):
            stat = each.stat()
            lines.append([str(each), stat.st_size, stat.st_mtime_ns])
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()[:32]


@contextlib.contextmanager
def _new_folder(target: Path, base: Path) -> Iterator[Path]:
    """A folder that appears as `target` when it is whole; another process's, if that was first."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder = Path(tempfile.mkdtemp(prefix=".new-", dir=target.parent))
    except OSError as exc:
        fix = (
            f"cannot be joined with the model ({exc.strerror}: {exc.filename}); set XDG_CACHE_HOME to a "
            "folder that this user can write"
        )
        raise ModelNotUsable("base", str(base), fix) from exc
    try:
        yield folder
        with contextlib.suppress(OSError):  # it is there already
            folder.rename(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _link(
    folder: Path, file: Path, base: Path, index: dict[str, Any], parts: list[str], documents: dict[str, Any]
) -> None:
    (folder / "model_index.json").symlink_to((base / "model_index.json").absolute())
    for part in index:
        if not _class(index, part) or part in UNUSED_PARTS:
            continue
        (folder / part).mkdir()
        for each in sorted((base / part).glob("*")):
            is_weights = each.suffix != ".json" or each.name.endswith(".index.json")
            if each.is_file() and not (part in parts and is_weights):
                (folder / part / each.name).symlink_to(each.absolute())
        if part in parts:
            stem = "diffusion_pytorch_model" if part in _OF_DIFFUSERS else "model"
            (folder / part / f"{stem}{file.suffix.lower()}").symlink_to(file.absolute())
    for name, document in documents.items():
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_text(json.dumps(document, sort_keys=True), encoding="utf-8")
