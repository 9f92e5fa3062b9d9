"""The benchmark for GPUs runs whole with a few channels on a CPU, and tells there what a GPU would do."""

from __future__ import annotations

import math
import time

import pytest
import torch
from click.testing import CliRunner

from bench import gpu
from bench.gpu_models import SHAPES, Shape

CPU = torch.device("cpu")


@pytest.mark.parametrize("shape", SHAPES, ids=[shape.name for shape in SHAPES])
def test_every_shape_is_rendered_and_measured(shape: Shape) -> None:
    torch.set_num_threads(1)
    run = gpu.Run(device=CPU, tiny=True, ends=math.inf)
    gpu.shape_cases(shape, run, math.inf)
    call, *pictures = run.results
    assert call["rows_independent"] and call["call_s"] > 0
    assert [each["case"] for each in pictures] == [f"{shape.name} {size}x{size}" for size in run.sizes]
    for each in pictures:
        assert each["calls"] >= 2 and each["step_over_bare"] > 0 and ("total_s" in each or "no_image" in each)


def test_what_has_no_time_is_named() -> None:
    run = gpu.Run(device=CPU, tiny=True, ends=time.monotonic())
    gpu.shape_cases(SHAPES[1], run, 0.0)
    assert len([each for each in run.results if "left_out" in each]) == len(run.sizes)


def test_quantized_weights_are_measured() -> None:
    run = gpu.Run(device=CPU, tiny=True, ends=math.inf)
    gpu.quantized_cases(run)
    assert len(run.results) == 4 and all(each["rows_independent"] for each in run.results)


def test_without_a_gpu_it_tells_what_it_would_do() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU and would run it")
    done = CliRunner().invoke(gpu.main, [], catch_exceptions=False)
    assert done.exit_code == 0 and done.output.count("evaluations") == 9
    assert "No GPU here" in done.output
