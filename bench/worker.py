"""One rank of a measurement, started by `bench.launch`: does one case and prints a JSON line from rank 0.

Cases: `image` renders a spec into a folder and reports seconds, model seconds and peak memory;
`stage` denoises one stage of a bare canvas with an SD-shaped model, as the panorama comparison wants it;
`decode` is diffusers' own decoding of a canvas, and reports its peak memory;
`autoencoder` is passes of layered autoencoders; `families` renders a tiny model of each family.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny

from infra.settings import read_settings
from infra.store.open import open_store
from render.distributed import Group, SingleRankGroup, join, leave
from render.engine import render_image
from render.models import load_adapter
from render.models.folder import read_model_info, resolve_model
from render.models.packaged import BUILTIN
from render.spec import Spec


@dataclass
class Clocked:
    """An adapter whose networks' own seconds are added up: the bare work of a render."""

    adapter: Any
    seconds: float = 0.0

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.adapter, name)
        if name not in ("predict", "decode", "encode", "encode_prompt"):
            return value

        def clocked(*arguments: Any) -> Any:
            started = time.perf_counter()
            answer = value(*arguments)
            self.seconds += time.perf_counter() - started
            return answer

        return clocked


def image(case: dict[str, Any], group: Group, device: torch.device) -> dict[str, Any]:
    """Render a spec; `above_model` is the peak of resident bytes above those after loading."""
    spec = Spec.from_mapping(case["spec"])
    folder = resolve_model(spec.model)
    adapter = Clocked(load_adapter(folder, device, spec.dtype, read_model_info(folder)))
    loaded = _start_peak()
    started, cpu_started = time.perf_counter(), time.process_time()
    sink = open_store(case["out"], read_settings({}), patience_s=60.0)
    report = render_image(spec, adapter, group, sink, device=device)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    above = _memory("VmHWM") - loaded
    peaks = [int(peak) for peak in group.all_gather_bytes(str(above).encode())]
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "bare_seconds": adapter.seconds,
        "above_model": max(peaks),
        "root": report.root,
        "seams": asdict(report.manifest.seams),
        "timings": report.manifest.timings,
    }


def stage(case: dict[str, Any], group: Group, device: torch.device) -> dict[str, Any]:
    """Denoise one stage from noise on a given grid; no cascade, no decoding."""
    from bench.panorama import our_loop

    loop, canvas = our_loop(Path(case["model"]), case, device)
    started = time.perf_counter()
    finished = loop.run(canvas, group).gather()
    seconds = time.perf_counter() - started
    if group.rank == 0 and "latents" in case:
        torch.save(finished.latents, case["latents"])
    return {"seconds": seconds}


def decode(case: dict[str, Any], group: Group, device: torch.device) -> dict[str, Any]:
    """Decode a canvas of noise as diffusers does, in one piece or in its own tiles."""
    folder = resolve_model(BUILTIN)
    vae = AutoencoderTiny.from_pretrained(folder / "vae").eval()
    if case["tiled"]:
        vae.enable_tiling()
    scale = read_model_info(folder).scale_factor
    shape = (1, vae.config.latent_channels, case["height"] // scale, case["width"] // scale)
    loaded = _start_peak()
    with torch.inference_mode():
        vae.decode(torch.randn(shape))
    return {"above_model": _memory("VmHWM") - loaded}


def autoencoder(case: dict[str, Any], group: Group, device: torch.device) -> dict[str, Any]:
    """Decode and encode with tiny layered autoencoders; see `bench.autoencoder_case`."""
    from bench.autoencoder_case import run

    done = [run(each, group, device, _start_peak, lambda: _memory("VmHWM")) for each in case["cases"]]
    return {"results": done}


def families(case: dict[str, Any], group: Group, device: torch.device) -> dict[str, Any]:
    """Render tiny models of all families; see `bench.family_case`."""
    from bench.family_case import run

    return run(case["folders"], group, device)


def _start_peak() -> int:
    """Resident bytes now, from which on the peak is taken."""
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def _memory(field: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def main() -> None:
    case = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    device = torch.device("cpu")
    group: Group = join(device) if "RANK" in os.environ else SingleRankGroup()
    kinds = {
        "image": image,
        "stage": stage,
        "decode": decode,
        "autoencoder": autoencoder,
        "families": families,
    }
    result = kinds[case["kind"]](case, group, device)
    if group.rank == 0:
        print(json.dumps(result), flush=True)
    leave()
    # As ranks do: at the interpreter's end gloo's threads now and then abort a process that is done.
    os._exit(0)


if __name__ == "__main__":
    main()
