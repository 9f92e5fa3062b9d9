"""Trains the flow transformer and its text encoder on the frozen autoencoder's latents. Resumable.

    python -m render.builtin.dit_data --out DIR
    python -m render.builtin.train_dit --data DIR --state dit.pt --out WEIGHTS

On one GPU, drawing more photographs beside it for as long as it trains:

    python -m render.builtin.train_dit --data DIR --state dit.pt --out WEIGHTS --device cuda --bfloat16 \\
        --minutes 9 --batch 1024 --draw-workers 15

A run that is stopped by SIGTERM or SIGINT saves its state first. Resumed on the same shards on a CPU, it goes
on with the same numbers.
"""

from __future__ import annotations

import copy
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import Qwen2Tokenizer

from render.builtin.dit_data import LONG_TEXT, Shards
from render.builtin.dit_folder import (
    new_text_encoder,
    new_tokenizer,
    new_transformer,
    save_dit,
    token_rows,
)
from render.builtin.dit_forward import FlowDenoiser
from render.builtin.dit_loss import Teacher, is_whole, loss_of, scaled
from render.builtin.muon import Muon
from render.builtin.training import Average
from render.builtin.wording import all_words

WARM_UP, FALL = 150, 0.4
"""Steps in which the rate rises, and the share of the training in which it falls."""
SAVE_EVERY_S = 180
LOG_EVERY, MEASURE_EVERY = 25, 100
"""Steps between lines of the log, and between those with the loss of photographs held out."""
READ_EVERY_S = 15
FIRST_DRAWN = 1000
"""Number of the first shard that is drawn beside the training."""
HELD_OUT_SEED = 777
_BLOCKS = tuple(f"transformer.{part}" for part in ("layers", "noise_refiner", "context_refiner"))


class Run:
    """Both optimizers, the moving average, the state on disk and the log."""

    def __init__(
        self, model: FlowDenoiser, path: Path, *, rate: float, decay: float, dtype: torch.dtype
    ) -> None:
        self.model, self.path = model, path
        self.average = Average(model, decay)
        self._averaged = copy.deepcopy(model).requires_grad_(False)
        blocks = [
            weight
            for name, weight in model.named_parameters()
            if weight.ndim == 2 and name.startswith(_BLOCKS) and "pad_token" not in name
        ]
        known = {id(weight) for weight in blocks}
        rest = [
            weight
            for name, weight in model.named_parameters()
            if id(weight) not in known and not name.startswith("text_encoder.layers")
        ]
        self._optimizers: list[torch.optim.Optimizer] = [
            Muon(blocks, lr=rate, dtype=dtype),
            torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
        ]
        self._rate, self.step, self.cpu_seconds = rate, 0, 0.0
        self._clock = time.process_time()
        self._recent: list[Tensor] = []
        if path.exists():
            saved = torch.load(path, weights_only=True, map_location=next(model.parameters()).device)
            model.load_state_dict(saved["model"])
            self.average.load(saved["average"], saved["step"])
            for optimizer, state in zip(self._optimizers, saved["optimizers"], strict=True):
                optimizer.load_state_dict(state)
            self.step, self.cpu_seconds = saved["step"], saved["cpu_seconds"]

    def descend(self, loss: Tensor, progress: float) -> None:
        """One step of both optimizers. The rate stays, and falls over the last part of the training."""
        rate = self._rate * min(1.0, (self.step + 1) / WARM_UP) * max(0.01, min(1.0, (1 - progress) / FALL))
        for optimizer in self._optimizers:
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self._optimizers:
            optimizer.step()
        self.average.update(self.model)
        self._recent.append(loss.detach())
        self.step += 1

    def averaged(self) -> FlowDenoiser:
        """A model with the averaged weights."""
        self._averaged.load_state_dict(self.average.weights)
        return self._averaged

    def log(self, held_out: float) -> str:
        """Append the mean loss since the last line; `held_out` is nan where it was not measured."""
        now = time.process_time()
        self.cpu_seconds, self._clock = self.cpu_seconds + now - self._clock, now
        loss = float(torch.stack(self._recent).mean())
        line = f"dit,{self.step},{self.cpu_seconds:.0f},{loss:.5f},{held_out:.5f}"
        self._recent = []
        if not math.isfinite(loss):
            raise ArithmeticError(f"the loss is {loss} at step {self.step}; resume with a lower --rate")
        with self.path.with_suffix(".csv").open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        return line

    def save(self) -> None:
        """Write the state atomically."""
        state = {
            "model": self.model.state_dict(),
            "average": self.average.weights,
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "step": self.step,
            "cpu_seconds": self.cpu_seconds + time.process_time() - self._clock,
        }
        torch.save(state, self.path.with_suffix(".tmp"))
        self.path.with_suffix(".tmp").rename(self.path)


class HeldOut:
    """Photographs that are not trained on, each at a noise level and with noise of its own, for the log."""

    def __init__(self, shards: Shards, count: int = 96) -> None:
        group = shards.groups[16, 16]
        chosen = torch.nonzero(is_whole(group["place"]))[:count].flatten()
        rows = {name: values[chosen] for name, values in group.items()}
        generator = torch.Generator().manual_seed(HELD_OUT_SEED)
        self._clean = scaled(rows["latents"])
        self._noise = torch.randn(self._clean.shape, generator=generator).to(self._clean.device)
        self._ids = rows["ids"][:, 0].long()
        self._sigmas = ((torch.arange(len(chosen)) + 0.5) / len(chosen)).to(self._clean.device)
        kept = torch.ones(len(group["place"]), dtype=torch.bool, device=chosen.device)
        kept[chosen] = False
        shards.groups[16, 16] = {name: values[kept] for name, values in group.items()}

    @torch.no_grad()
    def loss(self, model: nn.Module) -> float:
        """The mean squared error over all noise levels."""
        level = self._sigmas[:, None, None, None]
        noised = (1 - level) * self._clean + level * self._noise
        return float(functional.mse_loss(model(noised, self._sigmas, self._ids), self._noise - self._clean))


class Stopped:
    """True once the process has been asked to end."""

    def __init__(self) -> None:
        self._asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: object) -> None:
        self._asked = True

    def __bool__(self) -> bool:
        return self._asked


@contextmanager
def drawing(data: Path, workers: int) -> Iterator[None]:
    """While it is open, processes draw more shards into the folder."""
    command = [sys.executable, "-m", "render.builtin.dit_data", "--out", str(data), "--workers", str(workers)]
    command += ["--first", str(FIRST_DRAWN), "--shards", "5000", "--count", "250"]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # and its workers
        process.wait()


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Folder of shards.")
@click.option("--state", type=click.Path(path_type=Path), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the weights.")
@click.option("--steps", default=30_000, show_default=True)
@click.option("--minutes", type=float, help="End after so many minutes, if that comes first.")
@click.option("--batch", default=64, show_default=True)
@click.option("--rate", default=2e-3, show_default=True, help="Highest learning rate.")
@click.option("--teacher-share", default=0.0, show_default=True, help="Of targets from the UNet, at first.")
@click.option("--publish", default=500, show_default=True, help="Steps between weights written to OUT.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--draw-workers", default=0, show_default=True, help="Processes that draw more photographs.")
@click.option(
    "--least", default=2000, show_default=True, help="Photographs to wait for before the first step."
)
@click.option(
    "--begin-with", type=click.Path(path_type=Path, exists=True), help="Weights folder to start from."
)
@click.option("--compile", "compiled", is_flag=True, help="Compile the transformer's block.")
@click.option("--bfloat16", "halved", is_flag=True, help="For a GPU, or a CPU with such instructions.")
def main(
    data: Path,
    state: Path,
    out: Path,
    steps: int,
    minutes: float | None,
    batch: int,
    rate: float,
    teacher_share: float,
    publish: int,
    device: str,
    draw_workers: int,
    least: int,
    begin_with: Path | None,
    compiled: bool,
    halved: bool,
) -> None:
    """Train the flow transformer on the drawn photographs."""
    started, stopped = time.monotonic(), Stopped()
    tokenizer = new_tokenizer()
    torch.manual_seed(0)
    model = FlowDenoiser(new_transformer(), new_text_encoder(tokenizer), compiled=compiled).to(device)
    if begin_with is not None:
        load_weights(model, begin_with)
    blank = token_rows(tokenizer, [""], LONG_TEXT)[0].to(device)
    teacher = Teacher(device) if teacher_share else None
    dtype = torch.bfloat16 if halved else torch.float32
    run = Run(model, state, rate=rate, decay=0.999, dtype=dtype)
    data.mkdir(parents=True, exist_ok=True)
    saved_at = read_at = started
    with drawing(data, draw_workers) if draw_workers else nullcontext():
        shards = Shards(data, device)
        while shards.count < least and draw_workers and not stopped:
            time.sleep(1.0)
            shards.read()
        held_out = HeldOut(shards)
        click.echo(f"step {run.step}, {shards.count} photographs")
        while not stopped:
            spent = (time.monotonic() - started) / 60
            progress = max(run.step / steps, spent / minutes if minutes else 0.0)
            if progress >= 1:
                break
            torch.manual_seed(run.step)
            rows = shards.batch(np.random.default_rng([1, run.step]), batch)
            with torch.autocast(device, torch.bfloat16, enabled=halved):
                loss = loss_of(model, rows, blank, teacher, teacher_share * max(0.0, 1 - 2 * progress))
            run.descend(loss, progress)
            if run.step % LOG_EVERY == 0:
                measured = held_out.loss(run.averaged()) if run.step % MEASURE_EVERY == 0 else float("nan")
                click.echo(run.log(measured))
            if run.step % publish == 0:
                write_weights(out, run.averaged(), tokenizer)
            if time.monotonic() - saved_at > SAVE_EVERY_S:
                saved_at = time.monotonic()
                run.save()
            if draw_workers and time.monotonic() - read_at > READ_EVERY_S:
                read_at = time.monotonic()
                shards.read()
        run.save()
        write_weights(out, run.averaged(), tokenizer)
        measured = held_out.loss(run.averaged())
        click.echo(f"step {run.step}, {shards.count} photographs, held out {measured:.5f}")


def load_weights(model: FlowDenoiser, folder: Path) -> None:
    """Those of a folder, whose tokenizer has to be the present one."""
    if token_rows(Qwen2Tokenizer.from_pretrained(folder / "tokenizer"), list(all_words()), 8).tolist() != (
        token_rows(new_tokenizer(), list(all_words()), 8).tolist()
    ):
        raise click.BadParameter(f"{folder} has another tokenizer", param_hint="--begin-with")
    model.transformer.load_state_dict(
        load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    )
    model.text_encoder.load_state_dict(load_file(folder / "text_encoder" / "model.safetensors"))


def write_weights(out: Path, model: FlowDenoiser, tokenizer: Any) -> None:
    """The weights as a diffusers folder."""
    halved = copy.deepcopy(model).cpu()
    save_dit(out, halved.transformer, halved.text_encoder, tokenizer)


if __name__ == "__main__":
    main()
