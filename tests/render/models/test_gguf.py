"""GGUF files of transformer families: the weights that their blocks stand for, on any number of ranks."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from render.errors import BadInput, ModelNotUsable
from render.models import find_model_paths, load_adapter, model_info
from render.models.model_paths import check_additions
from render.models.weight_memory import weight_bytes
from render.spec import Spec
from tests.render.models.original_transformers import write, write_network
from tests.render.models.test_transformers_on_ranks import roots_of
from tests.render.models.tiny_transformers import save

pytestmark = pytest.mark.skipif(find_spec("gguf") is None, reason="needs chorale[gguf]")
CPU = torch.device("cpu")
NAME = "z-image"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(NAME, tmp_path_factory.mktemp("gguf") / NAME)


def write_gguf(folder: Path, file: Path, kind: str) -> tuple[Path, Path]:
    """(the network in GGUF, the same as safetensors with the weights that its blocks stand for)."""
    import gguf

    plain = write_network(folder, NAME, file.with_suffix(".safetensors"))
    writer, stood_for = gguf.GGUFWriter(file, "lumina2"), {}
    block = gguf.GGMLQuantizationType[kind]
    for name, value in load_file(plain).items():
        stood_for[name] = value.clone()
        # As in the files that there are: matrices are quantized, all else is not.
        if value.dim() == 2 and value.shape[1] % 32 == 0 and "pad_token" not in name:
            data = gguf.quants.quantize(value.numpy(), block)
            writer.add_tensor(name, data, raw_dtype=block)
            stood_for[name] = torch.from_numpy(gguf.quants.dequantize(data, block).copy())
        else:
            writer.add_tensor(name, value.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file, write(plain, stood_for)


def latents(folder: Path) -> Any:
    adapter: Any = load_adapter(folder, CPU, "float32")
    text = adapter.encode_prompt("a red vase", "", False)
    torch.manual_seed(2)
    return adapter.predict(torch.randn(1, 4, 8, 8), 400.0, text, (), (0,), 0.0)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q5_1"])
def test_it_computes_with_the_weights_that_the_blocks_stand_for(
    folder: Path, tmp_path: Path, kind: str
) -> None:
    file, plain = write_gguf(folder, tmp_path / "net.gguf", kind)
    paths, same = (find_model_paths(str(each), None, None, str(folder)) for each in (file, plain))
    assert model_info(paths).family == NAME and model_info(paths).digest != model_info(same).digest
    ours, theirs = latents(paths.model), latents(same.model)
    # diffusers expands the blocks in float16.
    assert (ours - theirs).abs().max() <= 5e-3 * float(theirs.std())
    assert weight_bytes(paths, "float32") < weight_bytes(same, "float32")


def test_others_are_refused_with_what_to_do(folder: Path, tmp_path: Path) -> None:
    file, _ = write_gguf(folder, tmp_path / "net.gguf", "Q8_0")
    data = file.read_bytes()

    def told(content: bytes, base: str | None = str(folder)) -> str:
        file.write_bytes(content)
        with pytest.raises(ModelNotUsable) as refused:
            model_info(find_model_paths(str(file), None, None, base))
        return str(refused.value)

    assert "as --base" in told(data, None)
    assert "cut off or damaged" in told(data[: len(data) // 2])
    assert "that is not GGUF" in told(b"PK\x03\x04" + data)
    assert "git lfs pull" in told(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "1,099,511,627,776 entries" in told(data[:8] + (2**40).to_bytes(8, "little") + data[16:])


def test_it_is_not_quantized_again(folder: Path, tmp_path: Path) -> None:
    file, _ = write_gguf(folder, tmp_path / "net.gguf", "Q8_0")
    paths = find_model_paths(str(file), None, None, str(folder))
    with pytest.raises(BadInput, match="is quantized already; leave it out"):
        check_additions(paths, Spec(prompt="x", quantize="int8"))
    check_additions(paths, Spec(prompt="x"))
    with pytest.raises(ModelNotUsable, match="leave --quantize out"):
        load_adapter(paths.model, CPU, "float32", quantize="int8")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_one_root_on_any_number_of_ranks(folder: Path, tmp_path: Path) -> None:
    file, _ = write_gguf(folder, tmp_path / "net.gguf", "Q8_0")
    joined = find_model_paths(str(file), None, None, str(folder)).model
    assert roots_of(2, [joined]) == roots_of(1, [joined])
