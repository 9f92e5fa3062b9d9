"""`chorale model`, and jobs that name a model of the farm."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import insert, select, update

from infra.database import now
from infra.settings import read_settings
from jobs.cli.main import cli, main
from jobs.db.submission import BatchItem, JobOptions, Preparation, insert_batch
from jobs.db.tables import batches
from jobs.farm import open_farm
from render.errors import BadInput
from render.models.folder import read_model_info, resolve_model
from render.models.model_paths import find_model_paths
from render.models.packaged import BUILTIN
from render.spec import Spec
from tests.render.models.original_transformers import write_network
from tests.render.models.tiny_transformers import save


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(resolve_model(BUILTIN), tmp_path / "models" / "brand")
    return tmp_path / "chorale"


def chorale(*arguments: str) -> Any:
    result = CliRunner().invoke(cli, [*arguments, "--json"], catch_exceptions=False)
    return json.loads(result.stdout.splitlines()[-1])


def job_of(model: str) -> dict[str, Any]:
    batch = chorale("submit", "a red vase", "--size", "128x128", "--model", model)["batch"]
    job: dict[str, Any] = chorale("show", chorale("list", "--batch", batch)["jobs"][0]["id"])
    return job


def test_a_file_is_added_with_the_folder_that_completes_it(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(home.parent / "cache"))
    base = save("z-image", home.parent / "base")
    file = write_network(base, "z-image", home.parent / "network.safetensors")
    with pytest.raises(SystemExit) as end:
        main(["model", "add", "brand", file.name])
    assert end.value.code == 2 and "as --base" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        main(["model", "add", "brand", "models/brand", "--base", "base"])
    assert end.value.code == 2 and "base: 'base' completes a single file" in capsys.readouterr().err
    added = chorale("model", "add", "brand", file.name, "--base", "base")
    here = find_model_paths(file.name, None, None, "base").model
    assert added["digest"] == read_model_info(here).digest and added["has_base"]
    file.unlink()
    shutil.rmtree(base)
    job = job_of("brand")
    assert job["spec"]["model"] == f"brand@{added['digest'][:16]}" and job["spec"].get("base") is None


def test_a_job_keeps_the_model_that_the_name_stood_for(home: Path) -> None:
    folder = home.parent / "models" / "brand"
    digest = read_model_info(folder).digest
    added = chorale("model", "add", "brand", "models/brand")
    assert added["digest"] == digest and added["family"] == "sdxl"
    shutil.move(folder, home.parent / "gone")
    job = job_of("brand")
    assert job["spec"]["model"] == f"brand@{digest[:16]}"
    with open_farm(read_settings({}), renders=True):
        path = find_model_paths(job["spec"]["model"], None).model
    assert path == home / "models" / digest and read_model_info(path).digest == digest
    # The name goes to another model; the job does not.
    index = home.parent / "gone" / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_x": 1}))
    other = chorale("model", "add", "brand", "gone", "--replace")
    assert other["digest"] != digest
    with open_farm(read_settings({}), renders=True):
        assert find_model_paths(job["spec"]["model"], None).model == path
    assert job_of("brand")["spec"]["model"] == f"brand@{other['digest'][:16]}"


def test_the_commands_tell_what_there_is(home: Path) -> None:
    chorale("model", "add", "brand", "models/brand")
    chorale("model", "add", "stored", (home.parent / "models" / "brand").as_uri())
    assert [each["name"] for each in chorale("model", "list")["models"]] == ["brand", "stored"]
    assert [each["whole"] for each in chorale("model", "verify")["models"]] == [True, True]
    pieces = sorted((home / "images" / "models" / "files").rglob("000000"))
    pieces[0].unlink()
    result = CliRunner().invoke(cli, ["model", "verify", "brand"])
    assert result.exit_code == 3 and "add the model again" in result.stdout
    assert chorale("model", "add", "brand", "models/brand")["bytes"] > 0
    assert chorale("model", "verify", "brand")["models"] == [{"name": "brand", "whole": True, "problems": []}]
    assert chorale("gc")["paths"] == []


def test_a_model_that_a_job_needs_is_not_removed(home: Path) -> None:
    chorale("model", "add", "brand", "models/brand")
    job = job_of("brand")
    with pytest.raises(BadInput, match="is needed by 1 unfinished job"):
        chorale("model", "remove", "brand")
    chorale("cancel", job["id"])
    assert chorale("model", "remove", "brand")["bytes"] > 0
    assert chorale("model", "list")["models"] == []
    with pytest.raises(BadInput, match="name of chorale model list"):
        job_of("brand")
    for command in ("remove", "verify"):
        with pytest.raises(BadInput, match="is no model of this farm"):
            chorale("model", command, "brand")
    with pytest.raises(BadInput, match="is not on this machine"):
        chorale("model", "add", "brand", "nothing")


def test_a_model_is_not_removed_while_a_batch_is_being_submitted(home: Path) -> None:
    digest = chorale("model", "add", "brand", "models/brand")["digest"]
    row = {"id": "b1", "name": "feed.csv", "owner": "anna", "queue": "night", "created": now()}
    with open_farm(read_settings({})) as farm, farm.database.write() as connection:
        connection.execute(insert(batches).values(**row))
    with pytest.raises(BadInput, match="may be needed by a batch that is being submitted"):
        chorale("model", "remove", "brand")
    with open_farm(read_settings({})) as farm, farm.database.write() as connection:
        connection.execute(update(batches).values(submitted=now()))
    assert chorale("model", "remove", "brand")["digest"] == digest


def test_a_model_that_is_removed_before_its_job_is_queued_is_missed(home: Path) -> None:
    """The submission has found it, and another process removes it before anything of the batch is stored."""
    chorale("model", "add", "brand", "models/brand")
    with open_farm(read_settings({})) as farm:
        with Preparation(JobOptions(owner="anna")) as prepared:
            spec = Spec(prompt="a vase", width=128, height=128, model="brand")
            prepared.add(BatchItem(row=1, custom_id="1", spec=spec))
            chorale("model", "remove", "brand")
            with pytest.raises(BadInput, match=r"model: 'brand'.* was removed from the farm meanwhile"):
                insert_batch(farm.database, prepared, "one")
        with farm.database.read() as connection:
            assert connection.execute(select(batches.c.id)).all() == []
