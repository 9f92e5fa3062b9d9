"""`chorale submit` of batches: what it prints, and that docs/CATALOG.md works as it is written."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from click.testing import CliRunner, Result

from jobs.cli.main import cli, main

CATALOG = Path(__file__).parents[3] / "docs" / "CATALOG.md"
SIZE = ("--size", "64x64")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("CHORALE_DATABASE_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def chorale(*arguments: str) -> Result:
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def as_json(*arguments: str) -> Any:
    return json.loads(chorale(*arguments, "--json").stdout.splitlines()[-1])


def write_feed(path: Path) -> None:
    """30 products as a shop's system exports them."""
    lines = ["SKU;Title;Colour;" + ";".join(f"Spare {n}" for n in range(36))]
    lines += [f"A-{n};Vase groß {n};grün;" + ";".join("x" * 36) for n in range(30)]
    path.write_bytes(("\r\n".join(lines) + "\r\n;;\r\n").encode("utf-8-sig"))


def test_the_document_works_as_it_is_written(home: Path) -> None:
    write_feed(home / "feed.csv")
    block = re.findall(r"```\n(chorale submit.*?)```", CATALOG.read_text(encoding="utf-8"), re.DOTALL)[0]
    results = [chorale(*shlex.split(line)[1:]) for line in block.splitlines()]
    assert len(results) == 2
    checked, queued = results
    assert "OK: 60 images would be queued" in checked.stdout
    assert "A-0: a studio photo of a grün Vase groß 0 (1024x1024, seed 0, 25 steps)" in checked.stdout
    assert "ignored 36 columns" in checked.stderr
    assert re.search(r"Batch [0-9a-f]{12} in queue night: 60 new jobs\n  [0-9a-f]{16}  A-0\n", queued.stdout)
    assert "and 50 more; chorale list --batch" in queued.stdout
    named = set(re.findall(r"`(--[a-z-]+)", CATALOG.read_text(encoding="utf-8")))
    commands = (cli.commands[name] for name in ("submit", "review", "export"))
    known = {option for command in commands for parameter in command.params for option in parameter.opts}
    assert named and named <= known


def test_a_workbook_is_a_batch_and_its_jobs_are_named(home: Path) -> None:
    book = openpyxl.Workbook()
    assert book.active is not None
    for row in (["SKU", "Title"], [1001, "vase"], [1002, "mug"]):
        book.active.append(row)
    book.save(home / "small.xlsx")
    arguments = ("submit", "small.xlsx", "--template", "a {Title}", "--id-column", "sku", *SIZE)
    queued = as_json(*arguments)
    assert [job["custom_id"] for job in queued["jobs"]] == ["1001", "1002"]
    ids = {job["id"] for job in queued["jobs"]}
    assert ids == {job["id"] for job in as_json("list", "--batch", queued["batch"])["jobs"]}
    assert (as_json(*arguments)["known"], as_json(*arguments)["done"]) == (2, 0)


def test_images_that_are_the_same_are_told(home: Path) -> None:
    (home / "b.csv").write_text("custom_id,product,color\n1,vase,red\n2,vase,red\n3,mug,blue\n")
    arguments = ("submit", "b.csv", "--template", "a {color} {product}", "--seeds", "2", *SIZE)
    checked = as_json(*arguments, "--dry-run")
    assert (checked["rows"], checked["same"]) == (6, 2)
    assert "2 as 1, 2-s2 as 1-s2" in checked["notes"][0]
    drawn = as_json(*arguments, "--seed", "random")
    assert (drawn["new"], drawn["same"]) == (6, 0)
    (again,) = re.findall(r"--seed (random:\d+)", drawn["notes"][0])
    repeated = as_json(*arguments, "--seed", again)
    assert (repeated["new"], repeated["known"]) == (0, 6)
    assert [job["id"] for job in repeated["jobs"]] == [job["id"] for job in drawn["jobs"]]


def test_one_prompt_may_be_several_images() -> None:
    queued = as_json("submit", "a {red|blue} vase", "--grid", "steps=2,3", "--seeds", "2", *SIZE)
    assert queued["new"] == 8 and queued["jobs"][0]["custom_id"] == "image-p1-steps2"
    plain = as_json("submit", "a vase", *SIZE)
    assert [job["custom_id"] for job in plain["jobs"]] == ["image"]


def test_all_errors_are_in_one_report(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"{n},vase {n},{'x' if n % 2 else 5}" for n in range(2, 1002)]
    rows[400] = '402,"12" vase",5'
    (home / "b.csv").write_text("\n".join(["custom_id,prompt,steps", *rows]) + "\n")
    with pytest.raises(SystemExit) as ended:
        main(["submit", "b.csv", *SIZE])
    lines = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert lines[0].startswith("chorale: b.csv, lines 3, 5, 7 and 497 more: steps: 'x' is not a whole number")
    assert lines[1].startswith("chorale: b.csv, line 402: quotes:")
    assert "501 bad rows; nothing was submitted" in lines[2] and len(lines) == 3
    with pytest.raises(SystemExit):
        main(["submit", "b.csv", *SIZE, "--json"])
    documents = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [error["count"] for error in documents[0]["errors"]] == [500, 1]
    assert documents[1]["code"] == 2 and "501 bad rows" in documents[1]["error"]
    assert not list(home.glob("*.jsonl")) and as_json("batches")["batches"] == []


def test_the_built_in_enlarger_is_no_file_name_wherever_it_is_given(home: Path) -> None:
    quick = ("--size", "128x128", "--seed", "1")
    (home / "spec.yaml").write_text("prompt: a vase\nenlarger: builtin\n")
    (home / "feed.csv").write_text("prompt,enlarger\na vase,builtin\n")
    by_flag = as_json("submit", "a vase", "--enlarger", "builtin", *quick)["jobs"][0]["id"]
    for words in (("--spec", "spec.yaml"), ("feed.csv",)):
        assert as_json("submit", *words, *quick)["jobs"][0]["id"] == by_flag
    plain = as_json("submit", "a vase", *quick)["jobs"][0]["id"]
    assert plain != by_flag
