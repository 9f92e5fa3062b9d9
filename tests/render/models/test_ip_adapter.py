"""IP-Adapter: equal to the stock pipelines at one window, taken off again, equal on any number of ranks."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from render.denoise.model_calls import JoinedCalls
from render.distributed import Group, SingleRankGroup
from render.engine import render_image
from render.errors import BadInput
from render.models import load_adapter, read_model_info
from render.models.ip_adapter import set_ip_adapter
from render.models.joined_calls import CallJoiner
from render.models.model_paths import ModelPaths, check_additions
from render.plan.stages import make_stages
from render.spec import Spec
from render.spec.ip_adapter import IpAdapter
from render.spec.reference import ReferencePicture
from tests.render.models.test_equals_stock import NEGATIVE, PROMPT, our_latents, stock, unit_noise
from tests.render.models.tiny_ip_adapters import SIDE, save_ip_adapter
from tests.support.groups import run_ranks
from tests.support.sinks import MemorySink

CPU = torch.device("cpu")
STEPS = 3


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, model_folders: dict[str, Path]) -> dict[str, Path]:
    root, draw = tmp_path_factory.mktemp("ip-adapters"), np.random.default_rng(3)
    for name, shape in (("photo", (48, 64, 3)), ("other", (64, 64, 3))):
        Image.fromarray(draw.integers(0, 256, shape, dtype=np.uint8)).save(root / f"{name}.png")
    return {
        "photo": root / "photo.png",
        "other": root / "other.png",
        "sd-epsilon": save_ip_adapter(root / "sd", model_folders["sd-epsilon"]),
        "sdxl": save_ip_adapter(root / "sdxl", model_folders["sdxl"]),
        "sdxl-plus": save_ip_adapter(root / "plus", model_folders["sdxl"], plus=True),
    }


def theirs(model: Path, file: Path, images: list[Path], weight: float, guidance: float) -> Tensor:
    pipeline = DiffusionPipeline.from_pretrained(model, local_files_only=True, low_cpu_mem_usage=False)
    pipeline.set_progress_bar_config(disable=True)
    encoder = CLIPVisionModelWithProjection.from_pretrained(file.parent / "image_encoder")
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    pipeline.register_modules(image_encoder=encoder, feature_extractor=processor)
    pipeline.load_ip_adapter(
        str(file.parent),
        subfolder="",
        weight_name=file.name,
        image_encoder_folder=None,
        low_cpu_mem_usage=False,
    )
    pipeline.set_ip_adapter_scale(weight)
    pipeline.scheduler = stock(model, "euler").scheduler
    opened = [Image.open(path).convert("RGB") for path in images]
    return pipeline(
        PROMPT,
        negative_prompt=NEGATIVE,
        height=64,
        width=64,
        num_inference_steps=STEPS,
        guidance_scale=guidance,
        latents=unit_noise(),
        ip_adapter_image=[opened],
        output_type="latent",
    ).images


def ours(adapter: Any, guidance: float, pictures: list[Path], wanted: IpAdapter | None = None) -> Tensor:
    set_ip_adapter(adapter, wanted, CPU, "float32")
    values = {"reference": tuple(map(ReferencePicture.open, pictures)), "ip_adapter": wanted}
    return our_latents(adapter, adapter.schedule("euler", STEPS), "euler", guidance, NEGATIVE, **values)


@pytest.mark.parametrize(
    ("name", "pictures", "guidance"),
    [
        ("sd-epsilon", ["photo"], 4.0),
        ("sdxl", ["photo"], 4.0),
        ("sdxl", ["photo", "other"], 1.0),
        ("sdxl-plus", ["photo"], 4.0),
    ],
)
def test_latents_equal_those_of_the_stock_pipeline(
    name: str, pictures: list[str], guidance: float, model_folders: dict[str, Path], files: dict[str, Path]
) -> None:
    model, images = model_folders[name.removesuffix("-plus")], [files[each] for each in pictures]
    adapter: Any = load_adapter(model, CPU, "float32")
    plain = ours(adapter, guidance, [])
    found = ours(adapter, guidance, images, IpAdapter.open(files[name], 0.6))
    expected = theirs(model, files[name], images, 0.6, guidance)
    limit = 1e-5 * max(1.0, float(expected.std()))
    assert (found - expected).abs().max() <= limit
    assert (found - plain).abs().max() > 100 * limit
    assert torch.equal(ours(adapter, guidance, []), plain), "the model is what it was, bit for bit"


def spec_of(files: dict[str, Path], **values: Any) -> Spec:
    given = {
        "prompt": PROMPT,
        "size": "128x128",
        "steps": 2,
        "tile_size": 64,
        "reference": [str(files["photo"])],
        "ip_adapter": f"{files['sdxl']}:0.7",
    }
    return Spec.from_mapping(given | values)


def test_the_pixels_are_the_same_on_any_number_of_ranks(
    model_folders: dict[str, Path], files: dict[str, Path]
) -> None:
    model, spec = model_folders["sdxl"], spec_of(files)
    info = read_model_info(model)
    adapters = [load_adapter(model, CPU, "float32", info) for _ in range(3)]
    for adapter in adapters:
        set_ip_adapter(adapter, spec.ip_adapter, CPU, "float32")

    def render(group: Group, spec: Spec = spec, calls: Any = None) -> str:
        adapter = adapters[group.rank]
        return render_image(spec, adapter, group, MemorySink(), device=CPU, calls=calls).root

    alone = render(SingleRankGroup())
    assert set(run_ranks(3, render)) == {alone}
    assert render(SingleRankGroup(), calls=JoinedCalls(CallJoiner(adapters[0]))) == alone
    other = spec_of(files, reference=[str(files["other"])])
    assert render(SingleRankGroup(), other) != alone


def test_what_does_not_fit_is_refused(
    model_folders: dict[str, Path], files: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=r"^ip_adapter: .* needs a picture; give --reference IMAGE"):
        spec_of(files, reference=[])
    with pytest.raises(BadInput, match=r"^reference_mode: 'aligned' does not go with an IP-Adapter"):
        spec_of(files, reference=[str(files["other"])], reference_mode="aligned")
    with pytest.raises(BadInput, match=r"^quantize: 'int8' does not go with an IP-Adapter"):
        spec_of(files, quantize="int8")
    with pytest.raises(BadInput, match=r"^ip_adapter: .* has a weight that is not from 0 to 10"):
        spec_of(files, ip_adapter=f"{files['sdxl']}:11")
    with pytest.raises(BadInput, match=r"^ip_adapter: 'nowhere' is no file or folder"):
        spec_of(files, ip_adapter="nowhere")
    with pytest.raises(BadInput, match=r"^ip_adapter: .* was trained for text states of \d+, and this model"):
        check_additions(ModelPaths(model=model_folders["sd-epsilon"]), spec_of(files))
    check_additions(ModelPaths(model=model_folders["sdxl"]), spec_of(files))
    with pytest.raises(BadInput, match=r"^reference: .* is seen by m through an IP-Adapter alone; give --ip"):
        make_stages(spec_of(files, ip_adapter=None, model="m"), read_model_info(model_folders["sdxl"]))

    alone = shutil.copy(files["sdxl"], tmp_path / "alone.safetensors")
    with pytest.raises(BadInput, match=r"needs the folder image_encoder of an encoder of width 24 beside it"):
        spec_of(files, ip_adapter=str(alone))
    shutil.copytree(files["sdxl"].parent / "image_encoder", tmp_path / "image_encoder")
    assert spec_of(files, ip_adapter=str(tmp_path)).ip_adapter == IpAdapter.open(
        tmp_path / "alone.safetensors"
    )
    face = load_file(files["sdxl"]) | {"ip_adapter.0.to_k_lora.down.weight": torch.zeros(1, 1)}
    save_file(face, tmp_path / "face.safetensors")
    with pytest.raises(BadInput, match="needs face recognition; use a plain or a Plus adapter"):
        spec_of(files, ip_adapter=str(tmp_path / "face.safetensors"))
    with pytest.raises(BadInput, match=r"has 2 files of safetensors; give the path of one"):
        spec_of(files, ip_adapter=str(tmp_path))
    save_file({"lora.weight": torch.zeros(1)}, tmp_path / "face.safetensors")
    with pytest.raises(BadInput, match="has no weights of an IP-Adapter"):
        spec_of(files, ip_adapter=str(tmp_path / "face.safetensors"))
    (tmp_path / "old.bin").write_bytes(b"x")
    with pytest.raises(BadInput, match="is a pickle"):
        spec_of(files, ip_adapter=str(tmp_path / "old.bin"))


def test_a_changed_adapter_is_told(
    model_folders: dict[str, Path], files: dict[str, Path], tmp_path: Path
) -> None:
    file = save_ip_adapter(tmp_path / "own", model_folders["sdxl"])
    wanted = IpAdapter.open(file)
    save_ip_adapter(tmp_path / "own", model_folders["sdxl"], seed=2)
    adapter = load_adapter(model_folders["sdxl"], CPU, "float32")
    with pytest.raises(BadInput, match="has changed since the job was submitted; restore it"):
        set_ip_adapter(adapter, wanted, CPU, "float32")


def test_a_path_plays_no_part_in_the_digest_and_the_weight_does(
    files: dict[str, Path], tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(files["sdxl"].parent, moved)
    spec, there = spec_of(files), spec_of(files, ip_adapter=f"{moved / files['sdxl'].name}:0.7")
    assert there.digest("m") == spec.digest("m") != spec_of(files, ip_adapter=str(files["sdxl"])).digest("m")
    assert Spec.from_mapping(spec.to_dict()) == spec
    assert spec.assets == spec.reference, "the pictures travel, the adapter has to be there"


def test_a_full_gpu_is_no_fault_of_the_adapter(
    model_folders: dict[str, Path], files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = load_adapter(model_folders["sdxl"], CPU, "float32")

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.nn.Module, "to", full)
    with pytest.raises(torch.OutOfMemoryError):
        set_ip_adapter(adapter, IpAdapter.open(files["sdxl"]), CPU, "float32")
