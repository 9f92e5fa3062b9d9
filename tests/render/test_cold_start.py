"""What is imported where: a process that starts must not wait for libraries that it does not use.

One process for all of it, since each that imports torch takes seconds; its checks build on each other.
"""

from __future__ import annotations

import subprocess
import sys

HEAVY = (
    *(
        "compel",
        "numba",
        "onnxruntime",
        "pandas",
        "peft.auto",
        "pymatting",
        "rembg",
        "sklearn",
        "spandrel",
        "torchao",
    ),
    # Of what stands in for the modules themselves, see `render.models.late_imports`.
    *("scipy.optimize._optimize", "scipy.stats._distn_infrastructure", "scipy.integrate._bvp"),
)
FACES = ("jobs.cli.main", "jobs.node.agent", "jobs.node.supervisor", "jobs.board.app", "jobs.board.server")
PROGRAM = f"""
import importlib, sys
for face in {FACES}:
    importlib.import_module(face)
found = [name for name in ("torch", "diffusers", "transformers", *{HEAVY}) if name in sys.modules]
assert not found, f"faces import {{found}}"

from render.launch.fork_server import _IMPORTED
from render.models.libraries import import_libraries
import_libraries()
for module, names in _IMPORTED.items():
    for name in names:
        getattr(importlib.import_module(module), name)
import torch
from render.distributed import SingleRankGroup
from render.engine import render_image
from render.models import load_adapter, resolve_model
from render.spec import Spec
from tests.support.sinks import MemorySink
cpu = torch.device("cpu")
adapter = load_adapter(resolve_model("builtin"), cpu, "float32")
render_image(Spec(prompt="a vase", width=128, height=128, steps=1), adapter, SingleRankGroup(),
             MemorySink(), device=cpu)
found = [name for name in {HEAVY} if name in sys.modules]
assert not found, f"a render imports {{found}}"

# From here on they are used.
from diffusers import EulerDiscreteScheduler
scheduler = EulerDiscreteScheduler(use_beta_sigmas=True)
scheduler.set_timesteps(5)
assert "scipy.stats._distn_infrastructure" in sys.modules and len(scheduler.sigmas) == 6
from scipy.optimize import linear_sum_assignment
assert list(linear_sum_assignment([[1, 0], [0, 1]])[1]) == [1, 0]
from diffusers.loaders import lora_base
from peft import LoraConfig
unet = adapter.pipeline.unet
assert not isinstance(unet, lora_base.BaseTunerLayer)
unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
tuned = [each for each in unet.modules() if isinstance(each, lora_base.BaseTunerLayer)]
import peft.tuners.tuners_utils
assert tuned and all(isinstance(each, peft.tuners.tuners_utils.BaseTunerLayer) for each in tuned)
print("all is well")
"""


def test_nothing_is_imported_that_is_not_used() -> None:
    finished = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-4000:]
    assert finished.stdout.strip() == "all is well"
