"""Batch files: every bad row is named by its line; good ones are specs."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from infra.settings import Settings
from jobs.intake.batch_reader import BadRow, Row, file_reader
from jobs.intake.options import parse_options
from jobs.intake.row_images import RowImages
from render.errors import BadInput
from render.spec import Spec


def read(
    path: Path, text: str, defaults: dict[str, Any] | None = None, **options: Any
) -> tuple[list[Row], list[str]]:
    path.write_text(text, encoding="utf-8")
    images = RowImages(Settings(), path.parent)
    reader = file_reader(path, options=parse_options(**options), defaults=defaults or {}, images=images)
    rows = list(reader)
    good = [row for row in rows if isinstance(row, Row)]
    return good, [f"{row.line}: {row.problem}" for row in rows if isinstance(row, BadRow)]


def test_a_template_writes_prompts_from_columns(tmp_path: Path) -> None:
    good, bad = read(
        tmp_path / "catalog.csv",
        "\ufeffcustom_id,color,product,size,seed\nA1,red,vase,512x384,7\nA2,blue,mug,,\n",
        template="a studio photo of a {color} {product}",
        defaults={"width": 256, "height": 256, "steps": 5},
    )
    assert bad == []
    assert [(row.line, row.custom_id, row.spec.prompt) for row in good] == [
        (2, "A1", "a studio photo of a red vase"),
        (3, "A2", "a studio photo of a blue mug"),
    ]
    first, second = good[0].spec, good[1].spec
    assert (first.width, first.height, first.seed, first.steps) == (512, 384, 7, 5)
    assert (second.width, second.height, second.seed) == (256, 256, 0)


def test_all_bad_rows_are_reported_with_their_lines(tmp_path: Path) -> None:
    good, bad = read(
        tmp_path / "catalog.csv",
        "custom_id,prompt,seed,sede\na,a vase,1,\na,a mug,2,\nb,,3,\nc,a box,x,\n"
        "d,a ball,4,9\ne,short\nf,ok,6,\n",
    )
    assert [row.custom_id for row in good] == ["a", "f"]
    assert [text.split(":")[0] for text in bad] == ["3", "4", "5", "6", "7"]
    parts = ("line 2", "prompt", "seed: 'x'", "did you mean seed", "2 do not match the header, which has 4")
    for text, part in zip(bad, parts, strict=True):
        assert part in text


CELLS = {
    "guidance_scale": ("3.5", 3.5),
    "window_batch": ("8", 8),
    "strength": ("1", 1.0),
    "refiner": ("some/refiner", "some/refiner"),
    "tile_size": ("256", 256),
    "width": ("64", 64),
    "boxes": ('"0,0,0.5,1: a red vase\n0.5,0,0.5,1: a mug"', ["a red vase", "a mug"]),
    "tile_set": ('"[""one: a,b"", {""name"": ""two"", ""left"": ""b"", ""right"": ""a""}]"', ["one", "two"]),
}


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_is_read_as_its_field_s_type(tmp_path: Path, name: str) -> None:
    cell, value = CELLS[name]
    good, bad = read(tmp_path / "b.csv", f"prompt,{name}\na vase,{cell}\na mug,\n")
    assert bad == []
    found, default = (getattr(row.spec, name) for row in good)
    parts = (
        [getattr(part, "name", None) or part.prompt for part in found] if isinstance(found, tuple) else found
    )
    assert parts == value
    assert default == getattr(Spec(prompt="x"), name), "an empty cell is the default"


def test_every_field_may_be_a_column(tmp_path: Path) -> None:
    names = [field.name for field in Spec.inputs()]
    good, bad = read(
        tmp_path / "b.csv", f"{','.join(names)}\n{','.join(['a vase'] + [''] * (len(names) - 1))}\n"
    )
    assert bad == [] and [row.spec for row in good] == [Spec(prompt="a vase")]


@pytest.mark.parametrize(
    ("name", "cell", "problem"),
    [
        ("window_batch", "many", "window_batch: 'many' is not a whole number from 1 to 256"),
        ("guidance_scale", "nan", "guidance_scale: nan is not a finite number; use 0 to 100"),
        ("guidance_scale", "high", "guidance_scale: 'high' is not a finite number; use 0 to 100"),
        ("boxes", "[", "boxes: '[' is not valid JSON"),
        ("custom_id", "a", "custom_id: 'a' is already used in line 2; use another"),
    ],
)
def test_a_bad_cell_is_reported_with_its_column(tmp_path: Path, name: str, cell: str, problem: str) -> None:
    first = "a" if name == "custom_id" else ""
    _, bad = read(tmp_path / "b.csv", f"prompt,{name}\na vase,{first}\na mug,{cell}\n")
    assert len(bad) == 1 and bad[0].startswith(f"3: {problem}")


def test_a_row_wins_over_the_defaults_of_its_batch(tmp_path: Path) -> None:
    good, bad = read(
        tmp_path / "b.yaml",
        "defaults: {size: 128x64, steps: 4}\nrows:\n- {prompt: a vase, size: 64x64}\n- {prompt: a mug}\n",
        defaults={"width": 256, "height": 256, "seed": 7},
    )
    assert bad == []
    assert [(row.spec.width, row.spec.height, row.spec.seed) for row in good] == [(64, 64, 7), (128, 64, 7)]


def test_paths_of_a_batch_are_relative_to_it_and_those_of_flags_are_not(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    given = {"init": str(tmp_path / "a.png")}
    good, bad = read(tmp_path / "b.csv", "prompt,init\na vase,a.png\na mug,\n", defaults=given)
    assert bad == [] and {row.spec.init.path for row in good if row.spec.init} == {str(tmp_path / "a.png")}


def test_jsonl_and_yaml(tmp_path: Path) -> None:
    good, bad = read(
        tmp_path / "b.jsonl", '{"prompt": "a vase", "seed": 3}\n\n[1]\n{"prompt": "a mug", "seed": "4"}\n{'
    )
    assert [(row.line, row.spec.seed) for row in good] == [(1, 3), (4, 4)]
    assert [text.split(":")[0] for text in bad] == ["3", "5"]
    good, bad = read(
        tmp_path / "b.yaml",
        "defaults: {steps: 4}\nrows:\n- {prompt: a vase}\n- {prompt: a mug, steps: 9}\n- 3\n",
    )
    assert [row.spec.steps for row in good] == [4, 9]
    assert len(bad) == 1


@pytest.mark.parametrize(
    ("name", "text", "part"),
    [
        ("b.txt", "", "unknown ending"),
        ("b.csv", "", "is empty"),
        ("b.yaml", "rows: 3", "no list of rows"),
        ("b.yaml", "jobs: []\nrows: []", "unknown in a batch"),
        ("b.yaml", "rows: [", "not valid YAML"),
        ("b.yaml", "rows: []\ndefaults: 3", "defaults: '3' is not names and values"),
        ("b.yaml", f"rows: {'[' * 5000}", "batch"),
        ("b.csv", "prompt,seed,seed\n", "has two columns named seed"),
    ],
)
def test_a_file_that_is_not_a_batch_is_refused(tmp_path: Path, name: str, text: str, part: str) -> None:
    with pytest.raises(BadInput, match=part):
        read(tmp_path / name, text)


@pytest.mark.parametrize("template", ["plain", "{", "{0}", "{a.b}", "{a:>9999999999}", "{a!r}"])
def test_a_template_that_names_no_columns_is_refused(tmp_path: Path, template: str) -> None:
    with pytest.raises(BadInput, match="template"):
        read(tmp_path / "b.csv", "a\n1\n", template=template)


def test_a_row_without_a_column_of_the_template_is_bad(tmp_path: Path) -> None:
    _, bad = read(tmp_path / "b.csv", "color,product\nred,\n", template="a {color} {product}")
    assert "needs product" in bad[0]
