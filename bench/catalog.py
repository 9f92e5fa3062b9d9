"""A catalog of native-size images on two cores, against two plain diffusers processes; and one of 512x512
images, against a render of each.

`BENCH_CATALOG_IMAGES` takes another number than 96. One process of diffusers: `python -m bench.catalog BATCH
FIRST COUNT FOLDER`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.farm import CHORALE
from bench.table import Row
from render.events import Event, ImageDone, ModelLoaded
from render.launch.rank_environment import RANK_ENVIRONMENT
from render.pipeline import ParallelizedDiffusionPipeline

IMAGES = int(os.environ.get("BENCH_CATALOG_IMAGES", "96"))
STEPS, SIDE, PROCESSES = 25, 128, 2
BATCHES = (1, 4, 8, 16)
"""Images per call of the plain processes; the best one counts."""
LARGER_IMAGES, LARGER_SIDE = 16, 512
Times = tuple[float, float]
"""Seconds with the start, and without: from the moment at which all models are loaded."""


def settings(side: int = SIDE) -> dict[str, int]:
    return {"width": side, "height": side, "num_inference_steps": STEPS}


def prompts(first: int = 0, count: int = IMAGES) -> list[str]:
    return [f"a red vase on a wooden table, number {number}" for number in range(first, first + count)]


def rows() -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="catalog-") as name:
        return list(_rows(Path(name)))


def _rows(folder: Path) -> Iterator[Row]:
    plain = {batch: _plain(batch, folder / f"plain-{batch}") for batch in BATCHES}
    for batch, (_, steady) in plain.items():
        yield Row(f"{IMAGES} images, two diffusers processes, {batch} at a time: seconds, steady", steady, "")
    best = min(plain, key=lambda batch: plain[batch][1])
    total, steady = plain[best]
    ours_total, ours_steady = _pipeline()
    yield Row(f"{IMAGES} images, a pipeline of two ranks: seconds, steady", ours_steady, "")
    yield Row("the pipeline over the best of diffusers, steady", ours_steady / steady, "<= 1.0")
    yield Row("the pipeline over the best of diffusers, with start", ours_total / total, "<= 1.1")
    for slot_images, wanted in (("1", ""), ("auto", "<= 1.1")):
        farm, how = _farm(folder, slot_images, IMAGES, SIDE), f"--slot-images {slot_images}"
        yield Row(f"{IMAGES} images, a farm of two slots, {how}: seconds, with start", farm, "")
        yield Row(f"the farm over the best of diffusers, {how}, with start", farm / total, wanted)


def larger_rows() -> list[Row]:
    """512x512 images: all of a catalog, against our own render of one after another."""
    side, count = LARGER_SIDE, LARGER_IMAGES
    what = f"{count} images of {side}x{side}"
    with tempfile.TemporaryDirectory(prefix="catalog-") as name:
        farm = _farm(Path(name), "auto", count, side)
        single = _renders(Path(name), count, side)
    one_by_one, together = _one_by_one(count, side), _pipeline(count, side)[1]
    return [
        Row(f"{what}, `chorale render --ranks {PROCESSES}` of each: seconds", single, ""),
        Row(f"{what}, a farm of two slots: seconds, with start", farm, ""),
        Row("rate of the farm over that of a render of each", single / farm, ">= 1.3"),
        Row(f"{what}, a pipeline of two ranks, one after another: seconds, steady", one_by_one, ""),
        Row(f"{what}, the same pipeline, all in one call: seconds, steady", together, ""),
        Row("rate of one call over that of one after another", one_by_one / together, ""),
    ]


def _renders(folder: Path, count: int, side: int) -> float:
    """A command for each image."""
    home = os.environ | {"XDG_DATA_HOME": str(folder / "home-single")}
    words = ["--ranks", str(PROCESSES), "--size", f"{side}x{side}", "--steps", str(STEPS)]
    started = time.time()
    for seed, text in enumerate(prompts(count=count)):
        out = ["--seed", str(seed), "--out", str(folder / f"single-{seed}")]
        subprocess.run([*CHORALE, "render", text, *words, *out], env=home, capture_output=True, check=True)
    return time.time() - started


def _one_by_one(count: int, side: int) -> float:
    """With the model loaded, a call for each image."""
    with ParallelizedDiffusionPipeline("builtin", num_modules=PROCESSES) as pipe:
        pipe.set_progress_bar_config(disable=True)
        pipe(prompts(count=1), seed=[count], **settings(side))
        started = time.time()
        for seed, text in enumerate(prompts(count=count)):
            pipe([text], seed=[seed], **settings(side))
        return time.time() - started


def _plain(batch: int, folder: Path) -> Times:
    """Two processes, each with half of the images."""
    folder.mkdir()
    share = IMAGES // PROCESSES
    started = time.time()
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "bench.catalog", *map(str, (batch, part * share, share, folder))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | RANK_ENVIRONMENT,
        )
        for part in range(PROCESSES)
    ]
    answers = [process.communicate() for process in processes]
    ended = time.time()
    if any(process.returncode for process in processes):
        raise RuntimeError(answers[0][1].decode()[-3000:])
    loaded = [float(printed.split()[-1]) for printed, _ in answers]
    return ended - started, ended - max(loaded)


def _pipeline(count: int = IMAGES, side: int = SIDE) -> Times:
    moments: dict[str, float] = {}

    def on_event(event: Event) -> None:
        if isinstance(event, ModelLoaded):
            moments["loaded"] = time.time()
        elif isinstance(event, ImageDone):
            moments["done"] = time.time()

    started = time.time()
    with ParallelizedDiffusionPipeline("builtin", num_modules=PROCESSES) as pipe:
        pipe.set_progress_bar_config(disable=True)
        asked = prompts(count=count)
        images = pipe(asked, seed=list(range(count)), on_event=on_event, **settings(side)).images
        # Until all images are in this process, as the plain processes have theirs in files.
        ended = time.time()
    assert len(images) == count
    return ended - started, ended - moments["loaded"]


def _farm(folder: Path, slot_images: str, count: int, side: int) -> float:
    """From the start of a farm, whose queue has the images already, to the last of them."""
    home = os.environ | {"XDG_DATA_HOME": str(folder / f"home-{slot_images}"), "CHORALE_NODE": "n"}
    lines = (json.dumps({"prompt": text, "seed": seed}) for seed, text in enumerate(prompts(count=count)))
    file = folder / "batch.jsonl"
    file.write_text("\n".join(lines))
    words = ["submit", str(file), "--size", f"{side}x{side}", "--steps", str(STEPS), "--json"]
    answer = subprocess.run([*CHORALE, *words], env=home, stdout=subprocess.PIPE, check=True)
    batch = json.loads(answer.stdout.splitlines()[-1])["batch"]
    started = time.time()
    up_words = [*CHORALE, "up", "--slots", str(PROCESSES), "--slot-images", slot_images]
    up = subprocess.Popen(up_words, env=home, stderr=subprocess.DEVNULL)
    try:
        waited = [*CHORALE, "wait", "--batch", batch, "--timeout", "7200"]
        subprocess.run(waited, env=home, stdout=subprocess.DEVNULL, check=True)
        return time.time() - started
    finally:
        up.terminate()
        up.wait(60)


def plain_process(batch: int, first: int, count: int, folder: Path) -> None:
    """Render images with diffusers alone, so many at a time; prints when the model was loaded."""
    import torch
    from diffusers import DiffusionPipeline

    from render.models.folder import resolve_model

    torch.set_num_threads(1)
    folder_of_model = resolve_model("builtin")
    pipe = DiffusionPipeline.from_pretrained(
        folder_of_model, local_files_only=True, torch_dtype=torch.float32
    )
    pipe.unet.to(memory_format=torch.channels_last)
    pipe.set_progress_bar_config(disable=True)
    sys.stdout.write(f"{time.time()}\n")
    for start in range(first, first + count, batch):
        texts = prompts(start, min(batch, first + count - start))
        draws = [torch.Generator().manual_seed(start + number) for number in range(len(texts))]
        images = pipe(texts, generator=draws, **settings()).images
        for number, image in enumerate(images):
            image.save(folder / f"{start + number}.png")


if __name__ == "__main__":
    plain_process(*map(int, sys.argv[1:4]), Path(sys.argv[4]))
