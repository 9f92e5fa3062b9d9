"""What the old version leaves behind, gone on from by the new one: a farm, checkpoints, finished images."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from bench.golden_specs import golden_specs
from bench.golden_tree import CommandFailed, Tree, end

PARTS = ("images", "steps", "blocks", "farm")
CHECKPOINT, BLOCKS = "work/checkpoint.safetensors", "work/block-*"
CANCELLED = 4
_PATIENCE_S = 1800.0
_LOOK_S = 0.002
_LONG: dict[str, Any] = {
    "prompt": "a red vase on a wooden table",
    "width": 256,
    "height": 256,
    "seed": 5,
    "steps": 32,
    "strength": 1.0,
    "tile_size": 128,
}
"""At this strength a stage begins at step 0, so that steps of different stages compare."""
_HEARING: dict[str, Any] = {
    "sampler": "dpmpp-2m",
    "dilated": 0.7,
    "cross_attention": 1.0,
    "skip_residual": 0.5,
    "seed": 6,
}
_BLOCKS: dict[str, Any] = {"width": 1536, "height": 1024, "steps": 2, "strength": 0.5, "seed": 7}
_SENTENCES = ("waits_for",)
"""Fields for people, whose wording may change between versions."""
_TILES_OF_BLOCK = 4 * 4 + 2 * 2 + 1
"""Of each of its six blocks, 512 px wide, with the levels that the block itself is halved to."""


class Check(NamedTuple):
    """One thing that the new version has to do, and what it did."""

    name: str
    holds: bool
    detail: str


class Moment(NamedTuple):
    """Where a checkpoint stands; an earlier one is less."""

    stage: int
    step: int


def carry_checks(
    old: Tree, new: Tree, models: Path, folder: Path, parts: Collection[str] = PARTS
) -> Iterator[Check]:
    """All checks, each as soon as it is made; `folder` is for the images and the farm."""
    specs = golden_specs(models)
    if "images" in parts:
        yield from _image_checks(old, new, specs, folder)
    if "steps" in parts:
        yield from _step_checks(old, new, "first stage", _LONG, 0, folder)
        yield from _step_checks(old, new, "second stage", _LONG | _HEARING, 1, folder)
    if "blocks" in parts:
        yield from _block_checks(old, new, folder)
    if "farm" in parts:
        yield from _farm_checks(old, new, specs, folder)


def _image_checks(old: Tree, new: Tree, specs: dict[str, Any], folder: Path) -> Iterator[Check]:
    """Finished images are verified, exported and not rendered again."""
    for name, target in (("shift-lcm", "whole.png"), ("tile-set", "{tile}.png")):
        image, spec = folder / f"image-{name}", _spec_file(folder, name, specs[name])
        before = old.call("render", "--spec", str(spec), "--ranks", "1", "--out", str(image))
        written = _files(image)
        report = new.call("verify", str(image))
        yield Check(f"image {name}: verify", report["passes"], f"{report['tiles']} tiles")
        ours, theirs = (
            _exported(tree, image, tree.scratch / f"export-{name}", target) for tree in (old, new)
        )
        detail = f"{', '.join(sorted(theirs))} with the pixels of the old version"
        yield Check(f"image {name}: export", ours == theirs != {}, detail)
        again = new.call("render", "--spec", str(spec), "--ranks", "1", "--out", str(image))
        kept = again["already"] is True and again["root"] == before["root"] and _files(image) == written
        yield Check(f"image {name}: rendered again", kept, "says that it is done, touches no file")


def _exported(tree: Tree, image: Path, folder: Path, target: str) -> dict[str, tuple[Any, ...]]:
    """Mode, size and pixels of each file; what is written beside them, as the prompt, may change."""
    folder.mkdir()
    tree.run("export", str(image), str(folder / target))
    found = {}
    for file in folder.iterdir():
        with Image.open(file) as picture:
            found[file.name] = (picture.mode, picture.size, picture.tobytes())
    return found


def _step_checks(
    old: Tree, new: Tree, name: str, values: dict[str, Any], stage: int, folder: Path
) -> Iterator[Check]:
    """A render that is stopped by SIGTERM between two steps of a stage, at one rank, goes on at two."""
    image, spec = folder / f"stopped-{stage}", _spec_file(folder, f"stopped-{stage}", values)
    words = ("render", "--spec", str(spec), "--checkpoint-every", "0", "--out", str(image))
    target = Moment(stage, values["steps"] // 4)
    code = _stopped(old, words, folder, lambda: (_moment(image) or Moment(0, 0)) >= target)
    kept = _moment(image)
    yield Check(f"{name}: stopped by the old version", code == CANCELLED and kept is not None, f"{kept}")
    assert kept is not None, "checked above"
    log = folder / f"continued-{stage}.log"
    with new.running(*words, "--ranks", "2", "--json", log=log) as process:
        seen = _moments(process, lambda: [image])
    yield _went_on(name, kept, seen)
    yield _root_check(old, name, spec, image, folder)


def _block_checks(old: Tree, new: Tree, folder: Path) -> Iterator[Check]:
    """One that is stopped while it decodes keeps the blocks that it has, and the new version takes them."""
    image, spec = folder / "stopped-blocks", _spec_file(folder, "stopped-blocks", _LONG | _BLOCKS)
    words = ("render", "--spec", str(spec), "--ranks", "1", "--out", str(image))
    code = _stopped(old, words, folder, lambda: any(image.glob(BLOCKS)))
    kept = [record.name for record in image.glob(BLOCKS)]
    tiles = {name: written for name, written in _files(image).items() if name.startswith("image_files/")}
    stopped = code == CANCELLED and bool(kept) and not (image / "manifest.json").exists()
    yield Check("blocks: stopped by the old version", stopped, f"{len(kept)} of 6 blocks are kept")
    log = folder / "continued-blocks.log"
    with new.running(*words, "--checkpoint-every", "0", "--json", log=log) as process:
        process.wait(_PATIENCE_S)
    now = _files(image)
    # A tile of a block that was not finished may have been written before the stop; it is written again.
    reused = sum(now.get(name) == written for name, written in tiles.items())
    detail = f"{reused} of the {len(tiles)} tiles that were there are left as they were"
    yield Check("blocks: not decoded again", reused >= len(kept) * _TILES_OF_BLOCK, detail)
    yield _root_check(old, "blocks", spec, image, folder)


def _farm_checks(old: Tree, new: Tree, specs: dict[str, Any], folder: Path) -> Iterator[Check]:
    """A farm's database and its images, with jobs in several states."""
    farm, specs = _Farm(folder / "farm"), specs | {"half": _LONG | {"seed": 8}}
    jobs, image = _leave_farm(old, farm, specs, folder)
    kept = _moment(image)
    assert kept is not None, "its checkpoint was waited for"
    states = {name: farm.call(old, "show", job)["state"] for name, job in jobs.items()}
    left = list(states.values()) == ["done", "queued", "queued", "queued", "paused"]
    yield Check("farm: left by the old version", left, f"{states}, half at {kept}")
    yield from _same_view(old, new, list(jobs.values()), farm)
    again = farm.call(new, "submit", "--spec", str(folder / "farm-overlap-euler.json"))
    known = (again["new"], again["known"], again["done"]) == (0, 1, 1)
    yield Check("farm: the finished job is known", known, json.dumps(again))
    farm.call(new, "resume", jobs["boxes-weighted"])
    with farm.up(new, folder / "up-new.log") as process:
        seen = _moments(process, lambda: _places(image), lambda: any(_places(image, "manifest.json")))
        for job in jobs.values():
            farm.call(new, "wait", job, "--timeout", str(_PATIENCE_S))
    yield _went_on("farm", kept, seen)
    for name, job in jobs.items():
        shown = farm.call(new, "show", job)
        wanted = _plain_root(old, _spec_file(folder, f"farm-{name}", specs[name]), folder)
        holds = shown["state"] == "done" and shown["root"] == wanted
        yield Check(f"farm: root of {name}", holds, f"{shown['state']}, {shown['root']}, wanted {wanted}")
        report = new.call("verify", str(farm.images / shown["folder"]))
        yield Check(f"farm: verify {name}", report["passes"], f"{report['tiles']} tiles")


class _Farm:
    """A farm on this machine, whichever version works on it."""

    def __init__(self, home: Path) -> None:
        self.images = home / "chorale" / "images"
        self._settings = {
            "XDG_DATA_HOME": str(home),
            "CHORALE_NODE": "golden",
            "CHORALE_CHECKPOINT_S": "0",
        }

    def call(self, tree: Tree, *words: str) -> dict[str, Any]:
        return tree.call(*words, **self._settings)

    def submit(self, tree: Tree, spec: Path, *words: str) -> str:
        """The id of the only job that this adds."""
        before = self._ids(tree)
        self.call(tree, "submit", "--spec", str(spec), "--ranks", "1", *words)
        (job,) = self._ids(tree) - before
        return job

    def up(self, tree: Tree, log: Path) -> AbstractContextManager[subprocess.Popen[str]]:
        return tree.running("up", "--slots", "1", "--no-board", log=log, **self._settings)

    def _ids(self, tree: Tree) -> set[str]:
        return {job["id"] for job in self.call(tree, "list")["jobs"]}


def _leave_farm(old: Tree, farm: _Farm, specs: dict[str, Any], folder: Path) -> tuple[dict[str, str], Path]:
    """Jobs that are done, half done (its node was stopped meanwhile), queued and paused.

    Their ids by the names of their specs, and the place of the image that is half done.
    """

    def submit(name: str, *words: str) -> str:
        return farm.submit(old, _spec_file(folder, f"farm-{name}", specs[name]), *words)

    jobs = {name: submit(name) for name in ("overlap-euler", "half")}
    image = farm.images / farm.call(old, "show", jobs["half"])["digest"]
    with farm.up(old, folder / "up-old.log") as process:
        _until(lambda: (_moment(image) or Moment(0, 0)) >= Moment(1, 5), process)
    farm.call(old, "queues", "night", "--limit", "4", "--share", "anna=2")
    jobs |= {name: submit(name, "--queue", "night") for name in ("init", "refiner", "boxes-weighted")}
    farm.call(old, "pause", jobs["boxes-weighted"])
    return jobs, image


def _same_view(old: Tree, new: Tree, jobs: list[str], farm: _Farm) -> Iterator[Check]:
    """The new version reports all values that the old one reports, except for sentences; it may add some."""
    for words in (("list",), ("batches",), ("queues",), *(("show", job) for job in jobs)):
        ours, theirs = (farm.call(tree, *words) for tree in (old, new))
        differences = list(_differences(ours, theirs, ""))
        detail = "; ".join(differences[:5]) or "says the same"
        yield Check(f"farm: {' '.join(words)}", not differences, detail)


def _differences(ours: Any, theirs: Any, place: str) -> Iterator[str]:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for name, value in ours.items():
            if name in _SENTENCES:
                continue
            yield from _differences(value, theirs.get(name, "missing"), f"{place}.{name}")
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for number, (each, other) in enumerate(zip(ours, theirs, strict=True)):
            yield from _differences(each, other, f"{place}[{number}]")
    elif ours != theirs:
        yield f"{place}: {ours!r}, now {theirs!r}"


def _went_on(name: str, kept: Moment, seen: list[Moment]) -> Check:
    """One that begins anew keeps checkpoints from before the one that it should have gone on from."""
    holds = bool(seen) and min(seen) >= kept and max(seen) > kept
    first = min((each for each in seen if each != kept), default=None)
    detail = f"from {kept}; its own earliest checkpoint that was seen is {first}"
    return Check(f"{name}: the new version goes on", holds, detail)


def _root_check(old: Tree, name: str, spec: Path, image: Path, folder: Path) -> Check:
    manifest = image / "manifest.json"
    root = json.loads(manifest.read_text())["root"] if manifest.exists() else None
    wanted = _plain_root(old, spec, folder)
    return Check(f"{name}: root of an uninterrupted render", root == wanted, f"{root}, wanted {wanted}")


def _plain_root(old: Tree, spec: Path, folder: Path) -> str:
    words = ("render", "--spec", str(spec), "--ranks", "1", "--out", str(folder / f"plain-{spec.stem}"))
    root: str = old.call(*words)["root"]
    return root


def _stopped(tree: Tree, words: tuple[str, ...], folder: Path, far_enough: Callable[[], bool]) -> int:
    """Start a render, stop it with SIGTERM as soon as it is far enough, and tell its exit code."""
    if "--ranks" not in words:
        words = (*words, "--ranks", "1")
    with tree.running(*words, "--json", log=folder / "stopped.log") as process:
        _until(far_enough, process)
        return end(process)


def _until(true: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Poll until something is true; raises `CommandFailed` when the process has ended before."""
    limit = time.monotonic() + _PATIENCE_S
    while not true():
        if process.poll() is not None or time.monotonic() > limit:
            raise CommandFailed(f"{process.args}: ended (or took too long) before it could be stopped")
        time.sleep(_LOOK_S)


def _places(image: Path, file: str = "") -> list[Path]:
    """A job's image folders that exist, or those with a certain file: newer versions append a suffix."""
    return [place for place in image.parent.glob(f"{image.name}*") if (place / file).exists()]


def _moments(
    process: subprocess.Popen[str], places: Callable[[], list[Path]], done: Callable[[], bool] = lambda: False
) -> list[Moment]:
    """All checkpoints of an image that are seen until a process has ended, or something is done."""
    seen: list[Moment] = []
    limit = time.monotonic() + _PATIENCE_S
    while process.poll() is None and not done() and time.monotonic() < limit:
        for moment in map(_moment, places()):
            if moment is not None and moment not in seen:
                seen.append(moment)
        time.sleep(_LOOK_S)
    return seen


def _moment(image: Path) -> Moment | None:
    """Where an image's checkpoint stands, by the header of its file; None where there is none."""
    try:
        with (image / CHECKPOINT).open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    except FileNotFoundError:
        return None
    facts = json.loads(header["__metadata__"]["chorale"])
    return Moment(facts["stage"], facts["step"])


def _files(folder: Path) -> dict[str, int]:
    """Name -> when it was written, of all files."""
    return {
        file.relative_to(folder).as_posix(): file.stat().st_mtime_ns
        for file in folder.rglob("*")
        if file.is_file()
    }


def _spec_file(folder: Path, name: str, values: dict[str, Any]) -> Path:
    file = folder / f"{name}.json"
    file.write_text(json.dumps(values))
    return file
