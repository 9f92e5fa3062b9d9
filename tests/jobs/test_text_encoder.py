"""Where text encoders are: what flags and settings mean, and what of it is part of a node's numerics."""

from __future__ import annotations

import pytest

import jobs.numerics
import jobs.text_encoder
from jobs.numerics import local_numerics
from jobs.text_encoder import node_text_encoder, resolve_text_encoder
from render.errors import BadInput
from render.models.model_paths import find_model_paths
from render.models.weight_memory import text_encoder_bytes, weight_bytes
from render.spec import Spec

SPEC, BUILTIN = Spec(prompt="a vase"), "builtin"


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Two GPUs, of which the smaller has just room for the model at four fifths."""
    weights = weight_bytes(find_model_paths(BUILTIN, None), "float32")
    monkeypatch.setattr(jobs.numerics, "gpu_names", lambda: ["NVIDIA H200"])
    monkeypatch.setattr(jobs.text_encoder, "visible_gpus", lambda: ("one", "other"))
    monkeypatch.setattr(jobs.text_encoder, "smallest_memory_bytes", lambda: weights * 1.25 + 1)
    return monkeypatch


def resolved(wanted: str | None, device: str = "auto") -> str:
    return resolve_text_encoder(wanted, find_model_paths(BUILTIN, None), SPEC, device)


def test_auto_is_the_gpu_where_all_weights_fit(gpus: pytest.MonkeyPatch) -> None:
    assert resolved("auto") == resolved(None) == "gpu"
    weights = weight_bytes(find_model_paths(BUILTIN, None), "float32")
    gpus.setattr(jobs.text_encoder, "smallest_memory_bytes", lambda: weights)
    assert resolved("auto") == "cpu" and resolved("auto", "cpu") == "gpu" and resolved("free") == "free"


def test_a_machine_without_a_gpu_keeps_them_on_the_one_rank() -> None:
    assert resolved("auto", "cpu") == "gpu"


def test_the_setting_of_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    assert node_text_encoder() == "gpu"
    monkeypatch.setenv("CHORALE_TEXT_ENCODER", "free")
    assert node_text_encoder() == resolved(None) == "free" and resolved("cpu") == "cpu"
    monkeypatch.setenv("CHORALE_TEXT_ENCODER", "disk")
    with pytest.raises(BadInput, match="CHORALE_TEXT_ENCODER: 'disk' is unknown; use one of auto, gpu"):
        node_text_encoder()


def test_prompts_on_the_cpu_beside_a_gpu_are_other_numerics(gpus: pytest.MonkeyPatch) -> None:
    gpu, cpu = local_numerics(text_encoder="gpu"), local_numerics(text_encoder="cpu")
    assert gpu.identity != cpu.identity and local_numerics(text_encoder="free") == gpu == local_numerics()
    assert local_numerics("cpu", "cpu") == local_numerics("cpu", "gpu"), "all of it is on the CPU"
    gpus.setenv("CHORALE_TEXT_ENCODER", "cpu")
    assert local_numerics() == cpu


def test_the_plan_tells_them_from_the_rest() -> None:
    paths = find_model_paths(BUILTIN, None)
    texts, whole = (size(paths, "float32") for size in (text_encoder_bytes, weight_bytes))
    assert 0 < texts < whole
