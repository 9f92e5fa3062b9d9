"""Batch files, init images, LoRA and model folders with flipped bytes: taken, or refused in one sentence."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import openpyxl
import pytest
from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE
from PIL import Image
from safetensors.numpy import save

from jobs.db.submission import JobOptions, Preparation
from jobs.intake.batch import check_batch
from jobs.intake.batch_reader import BatchReader
from jobs.intake.raw_rows import Reading
from render.errors import BadInput
from render.models.model_paths import find_model_paths, model_info
from render.spec import Spec
from tests.fuzz import values
from tests.fuzz.campaign import Result, run
from tests.fuzz.test_specs import refused

BUILTIN = Path("render/builtin/weights").resolve()
_PARTS = ("model_index.json", "unet/config.json", "vae/config.json", "scheduler/scheduler_config.json",
          "text_encoder_2/config.json", "tokenizer_2/tokenizer_config.json")  # fmt: skip


def damaged(random: Random, data: bytes) -> bytes:
    """Some bytes flipped or cut, now and then none."""
    found = bytearray(data)
    for _ in range(random.choice((0, 1, 1, 4, 40))):
        # Most of the first ones, where headers are.
        at = random.randrange(min(len(found), random.choice((64, 1024, len(found)))))
        found[at] = random.randrange(256) if random.random() < 0.5 else found[at] ^ 1 << random.randrange(8)
    return bytes(found[: random.randrange(len(found))] if random.random() < 0.1 else found)


def batch_file(random: Random) -> tuple[str, bytes]:
    """(ending, bytes) of a few rows."""
    ending = random.choice((".csv", ".jsonl", ".yaml", ".xlsx"))
    rows = [values.as_json(values.spec_values(random)) for _ in range(random.randrange(1, 5))]
    rows = [row if isinstance(row, dict) else {"prompt": "a vase"} for row in rows]
    try:
        if ending == ".csv":
            names = sorted({str(name)[:50] for row in rows for name in row})
            lines = [",".join(json.dumps(name) for name in names)]
            lines += [",".join(json.dumps(str(row.get(name, ""))[:200]) for name in names) for row in rows]
            text = "\n".join(lines)
        elif ending == ".xlsx":
            return ending, damaged(random, workbook(rows)) if random.random() < 0.7 else workbook(rows)
        elif ending == ".jsonl":
            text = "\n".join(json.dumps(row) for row in rows)
        else:
            text = json.dumps({"rows": rows})
    except (ValueError, RecursionError):
        text = "prompt\na vase\n"
    data = text.encode(errors="surrogatepass")
    return ending, damaged(random, data) if random.random() < 0.5 else data


def workbook(rows: list[dict[str, Any]]) -> bytes:
    """The rows as a program would write them, without what no sheet can hold."""
    book, names = openpyxl.Workbook(), sorted({str(name)[:50] for row in rows for name in row})
    sheet: Any = book.active
    for texts in [names, *([str(row.get(name, ""))[:200] for name in names] for row in rows)]:
        sheet.append(
            [ILLEGAL_CHARACTERS_RE.sub("", text).encode(errors="replace").decode() for text in texts]
        )
    target = io.BytesIO()
    book.save(target)
    return target.getvalue()


def _judge_batch(folder: Path) -> Callable[[tuple[str, bytes]], str]:
    def judge(case: tuple[str, bytes]) -> str:
        file = folder / f"rows{case[0]}"
        file.write_bytes(case[1])
        with Preparation(JobOptions(owner="me")) as prepared:
            try:
                checked = check_batch(BatchReader(reading=Reading(path=file)), prepared)
            except BadInput as exc:
                return refused(exc)
            for chunk in prepared.chunks():
                json.dumps(chunk)
        return "bad rows" if checked.bad else "taken"

    return judge


def picture(random: Random) -> tuple[str, bytes]:
    """(ending, bytes) of an image."""
    ending = random.choice(("png", "jpeg", "webp", "tiff"))
    mode = random.choice(("RGB", "L")) if ending == "jpeg" else random.choice(("RGB", "RGBA", "L"))
    target = io.BytesIO()
    Image.radial_gradient("L").resize((64, 64)).convert(mode).save(target, ending)
    return ending, damaged(random, target.getvalue())


def _judge_picture(folder: Path) -> Callable[[tuple[str, bytes]], str]:
    def judge(case: tuple[str, bytes]) -> str:
        file = folder / f"a.{case[0]}"
        file.write_bytes(case[1])
        try:
            Spec.from_mapping({"prompt": "x", "init": str(file), "size": "64x64"})
        except BadInput as exc:
            return refused(exc)
        return "taken"

    return judge


def lora(random: Random) -> bytes:
    return damaged(random, save({"unet.a.lora_A.weight": np.zeros(8, np.float32)}))


def _judge_lora(folder: Path) -> Callable[[bytes], str]:
    def judge(data: bytes) -> str:
        file = folder / "a.safetensors"
        file.write_bytes(data)
        try:
            Spec.from_mapping({"prompt": "x", "lora": [str(file)]})
        except BadInput as exc:
            return refused(exc)
        return "taken"

    return judge


def _model_folder(folder: Path) -> Callable[[Random], tuple[str, bytes]]:
    files = [*_PARTS, "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"]

    def make(random: Random) -> tuple[str, bytes]:
        name = random.choice(files)
        data = (BUILTIN / name).read_bytes()
        return name, damaged(random, data)

    return make


def _judge_model(folder: Path) -> Callable[[tuple[str, bytes]], str]:
    def judge(case: tuple[str, bytes]) -> str:
        name, data = case
        # The whole built-in model by links, but for the damaged file.
        shutil.rmtree(folder / "model", ignore_errors=True)
        shutil.copytree(BUILTIN, folder / "model", copy_function=lambda a, b: Path(b).symlink_to(a))
        (folder / "model" / name).unlink()
        (folder / "model" / name).write_bytes(data)
        try:
            model_info(find_model_paths(str(folder / "model"), None))
        except BadInput as exc:
            return refused(exc)
        return "taken"

    return judge


def campaigns(scale: float, folder: Path) -> list[Result]:
    """Batch files, pictures, LoRA and model folders; 1 is the whole number of each."""
    return [
        run("batch files", int(1000 * scale), batch_file, _judge_batch(folder)),
        run("pictures", int(2000 * scale), picture, _judge_picture(folder)),
        run("LoRA files", int(1000 * scale), lora, _judge_lora(folder)),
        run("model folders", int(500 * scale), _model_folder(folder), _judge_model(folder)),
    ]


def test_short(tmp_path: Path) -> None:
    for result in campaigns(0.04, tmp_path):
        result.check()


@pytest.mark.slow
def test_long(tmp_path: Path) -> None:
    for result in campaigns(1, tmp_path):
        result.check()
