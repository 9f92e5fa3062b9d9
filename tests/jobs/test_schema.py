"""The JSON schemas: valid themselves, and the examples are valid by them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from click.testing import CliRunner

from jobs.cli.main import cli
from jobs.cli.schema import schema_text
from render.spec.schema import batch_schema, spec_schema

VALIDATOR = jsonschema.Draft202012Validator
EXAMPLES = sorted(Path("examples").glob("*.yaml"))


@pytest.mark.parametrize("schema", [spec_schema(), batch_schema()], ids=["spec", "batch"])
def test_the_schema_is_one(schema: dict[str, Any]) -> None:
    VALIDATOR.check_schema(schema)
    assert schema["$schema"] == VALIDATOR.META_SCHEMA["$id"] and schema["title"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_examples_are_valid(path: Path) -> None:
    VALIDATOR(spec_schema()).validate(yaml.safe_load(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"prompt": "x", "steps": 0},
        {"prompt": "x", "steps": "4"},
        {"prompt": "x", "sampler": "eulr"},
        {"prompt": "x", "width": 7},
        {"prompt": "x", "guidance-scale": 3},
        {"prompt": "x", "boxes": [{"prompt": "a vase", "x": 2}]},
    ],
)
def test_what_a_spec_refuses_is_invalid(values: dict[str, Any]) -> None:
    assert not VALIDATOR(spec_schema()).is_valid(values)


def test_every_field_is_described() -> None:
    for name, field in spec_schema()["properties"].items():
        assert name == "$schema" or (field["description"] and field["title"])


def test_a_batch_may_have_columns_for_its_template() -> None:
    batch = {"defaults": {"steps": 4}, "rows": [{"custom_id": 1, "color": "red", "seed": 3}]}
    VALIDATOR(batch_schema()).validate(batch)
    assert not VALIDATOR(batch_schema()).is_valid({"rows": [{"seed": -1}]})


def test_the_command_prints_and_writes_them(tmp_path: Path) -> None:
    assert CliRunner().invoke(cli, ["schema"]).output == schema_text(spec_schema())
    out = tmp_path / "batch.json"
    assert CliRunner().invoke(cli, ["schema", "--batch", "--out", str(out)]).exit_code == 0
    assert out.read_text(encoding="utf-8") == schema_text(batch_schema())
