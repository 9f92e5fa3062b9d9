"""A field that is added to the spec's definition is in every face without another edit.

A program of its own adds the field before it imports anything that could list fields, and prints every face.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = """
import importlib.util, json, sys
from pathlib import Path
from typing import Annotated
from unittest.mock import MagicMock

import render.spec
import render.spec.spec
from pydantic import Field
from pydantic.dataclasses import dataclass
from render.spec.fields import OneOf, Shown
from render.spec.validation import CONFIG

@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Spec(render.spec.Spec):
    sparkle: Annotated[
        float | None,
        Field(ge=0.0, le=1.0, description="How much it glitters.", examples=[0.3]),
        Shown(label="Sparkle", group="Image", default="the model's own"),
    ] = None
    finish: Annotated[
        str,
        OneOf(("matte", "glossy")),
        Field(description="How it shines."),
        Shown(label="Finish", group="Coat"),
    ] = "matte"

render.spec.Spec = render.spec.spec.Spec = Spec

from click.testing import CliRunner
from fastapi import FastAPI
from jobs.board import api, pages, spec_body, spec_form
from jobs.cli.main import cli
from jobs.cli.spec_options import given_values
from jobs.intake.batch_reader import Row, file_reader
from render.errors import BadInput
from render.spec.schema import batch_schema, spec_schema

folder = Path(sys.argv[1])
verbs = ("render", "plan", "submit")
found = {"help": {verb: CliRunner().invoke(cli, [verb, "--help"]).output for verb in verbs}}

def tried(make):
    try:
        spec = make()
        return [spec.sparkle, spec.finish]
    except BadInput as exc:
        return str(exc)

def flag(*words):
    params = cli.commands["plan"].make_context("plan", ["a vase", *words]).params
    return Spec.from_mapping(given_values(params))

def rest(**values):
    return Spec.from_mapping(spec_body.spec_values(api.Image(prompt="a vase", **values)))

def form(**values):
    return Spec.from_mapping(spec_form.entered_values({"prompt": "a vase"} | values))

def batch(name, text):
    (folder / name).write_text(text)
    return [[row.spec.sparkle, row.spec.finish] if isinstance(row, Row) else row.problem
            for row in file_reader(folder / name)]

def spec_file(text):
    (folder / "a.yaml").write_text(text)
    return Spec.from_mapping(render.spec.read_spec_file(folder / "a.yaml"))

both = {"sparkle": "0.25", "finish": "glossy"}
found["values"] = {
    "flag": tried(lambda: flag("--sparkle", "0.25", "--finish", "glossy")),
    "rest": tried(lambda: rest(sparkle=0.25, finish="glossy")),
    "form": tried(lambda: form(**both)),
    "file": tried(lambda: spec_file("prompt: a vase\\nsparkle: 0.25\\nfinish: glossy")),
    "csv": batch("a.csv", "prompt,sparkle,finish\\na vase,0.25,glossy\\n")[0],
    "jsonl": batch("a.jsonl", json.dumps({"prompt": "a vase", "sparkle": 0.25, "finish": "glossy"}))[0],
    "yaml": batch("b.yaml", "defaults: {sparkle: 0.25}\\nrows: [{prompt: a vase, finish: glossy}]")[0],
}
found["defaults"] = {
    "csv": batch("c.csv", "prompt,sparkle,finish\\na vase,,\\n")[0],
    "form": tried(lambda: form(sparkle="")),
}
found["errors"] = {
    "flag": tried(lambda: flag("--sparkle", "2")),
    "rest": tried(lambda: rest(sparkle=2.0)),
    "form": tried(lambda: form(sparkle="2")),
    "file": tried(lambda: spec_file("prompt: a vase\\nsparkle: 2.0")),
    "csv": batch("d.csv", "prompt,sparkle\\na vase,2\\n")[0],
}
app = FastAPI()
app.include_router(api.router)
found["openapi"] = app.openapi()["components"]["schemas"]["Image"]["properties"]
found["schema"], found["batch"] = spec_schema()["properties"], batch_schema()["$defs"]["Row"]["properties"]

pages.known_models = lambda connection: []
request = MagicMock()
request.app.state.board.queues.return_value, request.query_params, request.url.path = [], {}, "/submit"
found["form"] = pages.form_page(request, {"finish": "glossy"}, None).body.decode()

place = importlib.util.spec_from_file_location("generate", "docs/generate.py")
generate = importlib.util.module_from_spec(place)
place.loader.exec_module(generate)
found["table"] = generate.spec_table()
found["canonical"] = json.loads(Spec(prompt="a vase", sparkle=1).canonical_json("m"))
print(json.dumps(found))
"""
SENTENCE = "sparkle: 2.0 is out of range; use 0 to 1"


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path_factory.mktemp("faces"))]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    found: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("verb", ["render", "plan", "submit"])
def test_a_new_field_is_a_flag(faces: dict[str, Any], verb: str) -> None:
    text = " ".join(faces["help"][verb].split())
    assert "--sparkle FLOAT How much it glitters. [the model's own]" in text
    assert "--finish TEXT How it shines. One of matte, glossy. [matte]" in text


@pytest.mark.parametrize("face", ["flag", "rest", "form", "file", "csv", "jsonl", "yaml"])
def test_a_new_field_is_read(faces: dict[str, Any], face: str) -> None:
    assert faces["values"][face] == [0.25, "glossy"]


def test_an_empty_cell_is_the_default(faces: dict[str, Any]) -> None:
    assert faces["defaults"] == {"csv": [None, "matte"], "form": [None, "matte"]}


@pytest.mark.parametrize("face", ["flag", "rest", "form", "file", "csv"])
def test_a_new_field_is_refused_alike(faces: dict[str, Any], face: str) -> None:
    assert faces["errors"][face] == SENTENCE


@pytest.mark.parametrize("face", ["openapi", "schema", "batch"])
def test_a_new_field_is_in_the_schemas(faces: dict[str, Any], face: str) -> None:
    sparkle, finish = faces[face]["sparkle"], faces[face]["finish"]
    assert {"minimum": 0.0, "maximum": 1.0, "type": "number"} in sparkle["anyOf"]
    assert (sparkle["description"], sparkle["examples"]) == ("How much it glitters.", [0.3])
    assert (finish["enum"], finish["default"]) == (["matte", "glossy"], "matte")


def test_a_new_field_is_in_the_form(faces: dict[str, Any]) -> None:
    form = faces["form"].partition('id="batch"')[0]
    usual, _, folded = form.partition("<details")
    assert '<input name="sparkle" value="" type="text" inputmode="decimal"' in usual
    assert "How much it glitters." in usual
    assert "<summary>Coat</summary>" in folded and "<option selected>glossy</option>" in folded


def test_a_new_field_is_in_the_table_of_the_documents(faces: dict[str, Any]) -> None:
    row = "| `sparkle` | `--sparkle` | the model's own | 0 to 1 | How much it glitters. |"
    assert row in faces["table"].splitlines()


def test_a_new_field_is_part_of_the_identity(faces: dict[str, Any]) -> None:
    assert (faces["canonical"]["sparkle"], faces["canonical"]["finish"]) == (1.0, "matte")


def test_every_face_reads_the_definition() -> None:
    """No module outside the definition lists the fields of a spec."""
    from render.spec import Spec

    names = {field.name for field in Spec.fields()}
    jobs = Path(__file__).parents[2] / "jobs"
    for path in (
        *(jobs / "intake").glob("*.py"),
        *(jobs / "cli").glob("*.py"),
        *(jobs / "board").rglob("*.*"),
    ):
        if path.suffix in (".py", ".html"):
            listed = {name for name in names if f'"{name}"' in path.read_text(encoding="utf-8")}
            assert len(listed) < 8, f"{path} lists {sorted(listed)}"
