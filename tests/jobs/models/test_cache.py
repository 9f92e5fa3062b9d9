"""A node's cache of models: fetched once whoever asks, never larger than its limit, never deleted in use."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from infra.store.local import LocalStore
from jobs.models.cache import ModelCache
from jobs.models.catalog import MODELS, ModelCatalog, StoredModel
from render.errors import BadInput, ModelNotUsable
from render.models import load_adapter
from render.models.base_folder import join_base
from render.models.folder import read_model_info, resolve_model
from render.models.packaged import BUILTIN
from render.safetensors_file import dtype_of, file_sha256
from tests.render.models.original_transformers import write_network
from tests.render.models.tiny_transformers import save

FORK = multiprocessing.get_context("fork")
PLENTY = 2**40


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(resolve_model(BUILTIN), tmp_path / "model")


def changed(folder: Path, target: Path) -> Path:
    """Another model of the same size."""
    shutil.copytree(folder, target)
    index = json.loads((target / "model_index.json").read_text()) | {"_name": target.name}
    (target / "model_index.json").write_text(json.dumps(index))
    return target


class CountingStore(LocalStore):
    """Appends every key that is read to a file, from whichever process."""

    def get(self, key: str) -> bytes:
        with (self.folder / "read.txt").open("a") as log:
            log.write(f"{key}\n")
        return super().get(key)

    def within(self, folder: str) -> CountingStore:
        return CountingStore(self.folder / folder)

    def keys_read(self) -> list[str]:
        return (self.folder / MODELS / "read.txt").read_text().splitlines()


def in_processes(count: int, work: Callable[[int], None]) -> None:
    processes = [FORK.Process(target=work, args=(number,)) for number in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * count


def added(store: LocalStore, folder: Path, name: str = "mine") -> StoredModel:
    return ModelCatalog(store).add(name, folder, str(folder), "test")


def test_many_processes_that_ask_at_once_fetch_a_model_once(folder: Path, tmp_path: Path) -> None:
    model = added(LocalStore(tmp_path / "store"), folder)
    store = CountingStore(tmp_path / "store")

    def use(number: int) -> None:
        catalog = ModelCatalog(store)
        found = catalog.find("mine")
        assert found is not None
        path = ModelCache(tmp_path / "cache", catalog, PLENTY).whole(found)
        assert read_model_info(path).digest == model.digest

    in_processes(8, use)
    pieces = [key for key in store.keys_read() if key.startswith("files/")]
    assert len(pieces) == len(set(pieces)) == sum(1 for file in model.files for _ in file.pieces())
    assert not list((tmp_path / "cache").glob(".new-*"))


def test_a_fetch_that_died_is_done_again(folder: Path, tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    model = added(store, folder)
    cache = tmp_path / "cache"

    class Dies(ModelCatalog):
        def read(self, file):  # type: ignore[no-untyped-def]
            if file.path.endswith(".safetensors"):
                os._exit(7)
            return super().read(file)

    process = FORK.Process(target=lambda: ModelCache(cache, Dies(store), PLENTY).whole(model))
    process.start()
    process.join(60)
    assert process.exitcode == 7 and list(cache.glob(".new-*"))
    path = ModelCache(cache, ModelCatalog(store), PLENTY).whole(model)
    assert read_model_info(path).digest == model.digest and not list(cache.glob(".new-*"))


def test_a_single_file_is_stored_with_what_completes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "joined"))
    base = save("z-image", tmp_path / "base")
    file = write_network(base, "z-image", tmp_path / "network.safetensors")
    for weights in (base / "transformer").glob("*.safetensors"):
        weights.unlink()
    here = read_model_info(join_base(file, base))
    store = LocalStore(tmp_path / "store")
    model = ModelCatalog(store).add("mine", file, str(file), "test", base=base)
    assert model.digest == here.digest and model.has_base
    assert [each.path for each in model.files][:1] == ["network.safetensors"]
    shutil.rmtree(base)
    file.unlink()
    found = ModelCatalog(store).find("mine")
    assert found == model
    cache = ModelCache(tmp_path / "cache", ModelCatalog(store), PLENTY)
    assert read_model_info(cache.headers(model)) == here
    path = cache.whole(model)
    assert read_model_info(path) == here
    load_adapter(path, torch.device("cpu"), "float32")


def test_the_model_unused_for_longest_goes_and_one_in_use_stays(folder: Path, tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    names = ("a", "b", "c", "d")
    models = {name: added(store, changed(folder, tmp_path / name), name) for name in names}
    limit = 2.5 * models["a"].bytes

    def here() -> set[str]:
        return {name for name in names if (tmp_path / "cache" / models[name].digest).is_dir()}

    def use(name: str) -> None:
        in_processes(
            1, lambda _: ModelCache(tmp_path / "cache", ModelCatalog(store), limit).whole(models[name])
        )

    for age, name in enumerate(("a", "b")):
        use(name)
        os.utime(tmp_path / "cache" / models[name].digest, (age, age))
    use("c")
    assert here() == {"b", "c"}
    kept = ModelCache(tmp_path / "cache", ModelCatalog(store), limit)
    kept.whole(models["b"])
    os.utime(tmp_path / "cache" / models["b"].digest, (0, 0))
    use("d")
    assert here() == {"b", "d"}, "b is the oldest, and this process uses it"
    kept.whole(models["d"])
    with pytest.raises(ModelNotUsable, match="other jobs are using; raise CHORALE_MODEL_CACHE_GIB"):
        ModelCache(tmp_path / "cache", ModelCatalog(store), limit).whole(models["a"])
    with pytest.raises(ModelNotUsable, match="this node's cache"):
        ModelCache(tmp_path / "other", ModelCatalog(store), 1000).whole(models["a"])


def test_planning_needs_no_weights(folder: Path, tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    model = added(store, folder)
    path = ModelCache(tmp_path / "cache", ModelCatalog(store), PLENTY).headers(model)
    assert read_model_info(path) == read_model_info(folder)
    weights = sorted((path / "unet").glob("*.safetensors"))
    assert weights and dtype_of(tuple(weights)) == dtype_of(
        tuple(sorted((folder / "unet").glob("*.safetensors")))
    )
    assert (
        sum(file.stat().st_blocks * 512 for file in weights)
        < sum(file.stat().st_size for file in weights) / 4
    )
    assert ModelCache(tmp_path / "cache", ModelCatalog(store), PLENTY).headers(model) == path


def test_damage_in_the_store_is_told_and_nothing_is_kept(folder: Path, tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    catalog, model = ModelCatalog(store), added(store, folder)
    assert catalog.verify(model) == []
    file = next(
        file for file in model.files if file.path.startswith("unet/") and file.path.endswith("safetensors")
    )
    key, size = next(file.pieces())
    damaged = tmp_path / "store" / MODELS / key
    damaged.write_bytes(b"\0" * size)
    (problem,) = catalog.verify(model)
    assert problem.startswith(file.path) and "other bytes" in problem
    cache = ModelCache(tmp_path / "cache", catalog, PLENTY)
    with pytest.raises(ModelNotUsable, match="has other bytes in the farm's store"):
        cache.whole(model)
    damaged.unlink()
    assert "is not whole in the store" in catalog.verify(model)[0]
    with pytest.raises(ModelNotUsable, match="is not whole in the farm's store"):
        cache.whole(model)
    assert cache.models() == []


def test_names_point_to_one_model_and_files_are_stored_once(folder: Path, tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    catalog, first = ModelCatalog(store), added(store, folder)
    other = changed(folder, tmp_path / "other")
    with pytest.raises(BadInput, match="is the name of another model"):
        catalog.add("mine", other, "", "test")
    second = catalog.add("mine", other, "", "test", replace=True)
    found = catalog.find("mine")
    assert found == second and catalog.find(first.pointed_name) == first, (
        "a job that was submitted keeps its model"
    )
    assert catalog.add("twin", folder, "", "test").digest == first.digest
    unet = next(
        file for file in first.files if file.path.startswith("unet/") and file.path.endswith("safetensors")
    )
    assert unet.sha256 == file_sha256(folder / unet.path)
    catalog.forget(second, catalog.models())
    assert catalog.delete_files(second) < 10_000, "the other model has the same weights"
    assert [model.name for model in catalog.models()] == ["twin"]
    (twin,) = catalog.models()
    catalog.forget(twin, catalog.models())
    catalog.delete_files(twin)
    assert list(store.within(MODELS).entries("files/")) == []


def test_a_single_file_is_a_model_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.render.models.test_single_file import header_of

    file = header_of(tmp_path / "x.safetensors", 768)
    store = LocalStore(tmp_path / "store")
    model = added(store, file)
    for path in (
        ModelCache(tmp_path / "cache", ModelCatalog(store), PLENTY).whole(model),
        ModelCache(tmp_path / "cache", ModelCatalog(store), PLENTY).headers(model),
    ):
        assert path.name == "x.safetensors" and read_model_info(path).digest == model.digest


@pytest.mark.parametrize("name", ["", "a b", "../x", "owner/name", "x" * 65, "builtin", "ä"])
def test_other_names_are_refused(folder: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInput, match="name"):
        added(LocalStore(tmp_path / "store"), folder, name)


def test_a_damaged_model_is_not_added(folder: Path, tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    (file,) = (folder / "unet").glob("*.safetensors")
    data = file.read_bytes()
    for content in (
        data[:1000],
        (2**40).to_bytes(8, "little") + data[8:],
        b"version https://git-lfs.github.com/spec/v1\n",
    ):
        file.write_bytes(content)
        with pytest.raises(ModelNotUsable):
            added(store, folder)
    save_file({"a": np.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(ModelNotUsable, match="of a kind that is not read"):
        added(store, tmp_path / "a.safetensors")
    assert not (tmp_path / "store").exists()


ODD_FILES: tuple[dict[str, object], ...] = (
    {"path": "../../outside.txt"},
    {"path": "/tmp/outside.txt"},
    {"path": "unet/../../outside.txt"},
    {"path": "unet//x"},
    {"path": "a\0b"},
    {"path": "..\\outside.txt"},
    {"path": 7},
    {"bytes": -1},
    {"bytes": "many"},
    {"sha256": "../" * 20},
    {"sha256": "0" * 63},
    {"more": 1},
)


def test_a_record_leads_to_no_other_place(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever can write to the store must not make nodes write elsewhere."""
    store = LocalStore(tmp_path / "store")
    model, other = added(store, folder), added(store, changed(folder, tmp_path / "other"), "other")
    catalog = ModelCatalog(store)
    place = tmp_path / "store" / MODELS / "records" / f"{model.digest[:16]}.json"
    record = json.loads(place.read_text())
    odd = [record | {"files": [record["files"][0] | change, *record["files"][1:]]} for change in ODD_FILES]
    odd += [record | {"digest": other.digest}, record | {"files": []}, {}]
    for text in ("[]", "{", *map(json.dumps, odd)):
        place.write_text(text)
        with pytest.raises(ModelNotUsable, match="has a damaged record in the farm's store; add the model"):
            catalog.find("mine")
        with pytest.raises(ModelNotUsable):
            catalog.find(model.pointed_name)
        assert [each.name for each in catalog.models()] == ["other"]
    assert "mine: model:" in caplog.text
    again = added(store, folder)
    assert again.digest == model.digest, "it is mended by adding the model again"
    assert catalog.find("mine") == catalog.find(model.pointed_name) == again
