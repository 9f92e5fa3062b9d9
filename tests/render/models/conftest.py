"""One tiny random model of each kind, saved once per session."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from tests.render.models.tiny_folders import (
    BETAS,
    GENTLE_BETAS,
    save_kolors,
    save_refiner,
    save_sd,
    save_sdxl,
)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    folders = {
        "sd-epsilon": save_sd(root / "sd-epsilon", "epsilon", GENTLE_BETAS),
        "sd-epsilon-steep": save_sd(root / "sd-epsilon-steep", "epsilon", BETAS),
        "sd-v": save_sd(root / "sd-v", "v_prediction", BETAS),
        "sd-distilled": save_sd(root / "sd-distilled", "epsilon", GENTLE_BETAS, time_cond_proj_dim=8),
        "sdxl": save_sdxl(root / "sdxl"),
        "sdxl-second-only": save_sdxl(root / "sdxl-second-only", both_encoders=False),
    }
    if find_spec("sentencepiece") is not None:  # of the extra kolors
        folders["kolors"] = save_kolors(root / "kolors")
    return folders


@pytest.fixture(scope="session")
def refiner_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A refiner for the folder `sdxl`."""
    return save_refiner(tmp_path_factory.mktemp("refiner"))
