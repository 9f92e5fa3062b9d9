"""Rows: columns by name, cells by field, templates, wildcards, grids, seeds, and one report of all errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.db.submission import JobOptions, Preparation
from jobs.intake.batch import check_batch
from jobs.intake.batch_reader import BadRow, file_reader
from jobs.intake.cells import parse_cell
from jobs.intake.error_report import SHOWN_KINDS, error_lines, grouped_errors
from jobs.intake.options import parse_options
from jobs.intake.template import MAX_ALTERNATIVES, Template, expand_wildcards
from render.errors import BadInput
from render.spec import Spec
from tests.jobs.intake.batches import TEMPLATE, prompts, read_file

_FIELDS = {field.name: field for field in Spec.inputs()}


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8", newline="")
    return path


@pytest.mark.parametrize(
    ("name", "cell", "value"),
    [
        ("steps", "20.0", 20),
        ("steps", "20,00", 20),
        ("steps", " 20 ", 20),
        ("seed", "0510", 510),
        ("steps", 20.0, 20),
        ("strength", "0,3", 0.3),
        ("strength", ".3", 0.3),
        ("guidance_scale", "3.5", 3.5),
        ("guidance_scale", "5", 5.0),
        ("window_batch", "4", 4),
    ],
)
def test_a_number_is_read_as_spreadsheets_write_it(name: str, cell: Any, value: Any) -> None:
    assert parse_cell(_FIELDS[name], cell) == value


@pytest.mark.parametrize(
    ("name", "cell", "problem"),
    [
        ("seed", "1.23457E+11", "was rounded by a spreadsheet"),
        ("seed", "1,23457E+11", "was rounded by a spreadsheet"),
        ("seed", "1e5", "was rounded by a spreadsheet"),
        ("seed", "1_000", "not a whole number"),
        ("seed", "٣", "not a whole number"),
        ("seed", "9" * 5000, "not a whole number"),
        ("steps", "1,000", "may be thousands or a fraction"),
        ("steps", "20.5", "not a whole number"),
        ("strength", "1.234,5", "not a finite number"),
        ("strength", "1_0", "not a finite number"),
        ("strength", "30%", "is a percentage; write 0.3"),
    ],
)
def test_a_number_that_may_be_another_is_refused(name: str, cell: str, problem: str) -> None:
    with pytest.raises(BadInput, match=f"{name}: .*{problem}"):
        parse_cell(_FIELDS[name], cell)


def test_a_rounded_id_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "b.csv", "EAN,prompt\n4.00638E+12,a vase\n1E5,a mug\n")
    good, bad, _ = read_file(path, id_column="EAN")
    assert [row.custom_id for row in good] == ["1E5"] and "custom_id: '4.00638E+12' was rounded" in bad[0]


def test_columns_that_nobody_knows_are_counted_once(tmp_path: Path) -> None:
    names = [f"attribute_{number}" for number in range(38)]
    text = ",".join(["sku", "product", "color", "stpes", *names]) + "\n"
    text += "".join(f"X{n},vase,red,9" + ",x" * 38 + "\n" for n in range(3))
    path = write(tmp_path / "b.csv", text)
    good, bad, notes = read_file(path, template=TEMPLATE, id_column="sku")
    assert bad == [] and len(good) == 3
    assert len(notes) == 1 and "ignored 39 columns" in notes[0] and "did you mean steps by stpes?" in notes[0]
    good, bad, notes = read_file(path, column_map=["product=prompt", "sku=custom_id"], ignore="color,stpes")
    assert good == [] and len(bad) == 3 and "attribute_0" in bad[0] and notes == []


def test_a_column_that_only_sounds_like_a_field_brings_no_hint(tmp_path: Path) -> None:
    path = write(tmp_path / "b.csv", "product,color,Lager\nvase,red,7\n")
    _, _, notes = read_file(path, template=TEMPLATE)
    assert notes == ["ignored 1 column that neither the template nor the spec uses: Lager"]


@pytest.mark.parametrize(
    ("header", "template"),
    [
        ("Product Name,Color", "a {color} {Product Name}"),
        ("PRODUCT-NAME, color ", "a {Color} {product_name}"),
        ("product  name,COLOR", "a {COLOR} {Product-Name}"),
    ],
)
def test_names_of_columns_in_any_case_and_with_blanks(tmp_path: Path, header: str, template: str) -> None:
    good, bad, _ = read_file(write(tmp_path / "b.csv", f"{header}\nvase,red\n"), template=template)
    assert bad == [] and prompts(good) == ["a red vase"]


def test_columns_are_named_by_their_owner(tmp_path: Path) -> None:
    path = write(tmp_path / "b.csv", "Farbe,Artikel,Schritte,Quality\nrot,Vase,7,A+\n")
    good, bad, _ = read_file(
        path,
        template=TEMPLATE + ", {Artikel}",
        column_map=["farbe=color", "Artikel = product", "Schritte=steps"],
        ignore="quality",
    )
    assert bad == [] and prompts(good) == ["a rot Vase, Vase"] and good[0].spec.steps == 7


@pytest.mark.parametrize(
    ("text", "options", "problem"),
    [
        ("product,color,color\nvase,red,blue\n", {"template": TEMPLATE}, "two columns named color"),
        ("product,Color,color \nvase,red,blue\n", {"template": TEMPLATE}, "two columns for one thing, Color"),
        ("prompt,seed,Seed\na,1,2\n", {}, "two columns for one thing"),
        ("prompt,a,b\nx,1,2\n", {"column_map": ["a=steps", "b=steps"]}, "two columns for one thing"),
        ("product\nvase\n", {"template": TEMPLATE}, r"names color, which is no column of the file \(product"),
        ("product\nvase\n", {}, r"has no column prompt \(product\); give a template"),
        ("prompt\nvase\n", {"id_column": "SKU"}, "id-column: 'SKU' names no column"),
        ("prompt\nvase\n", {"column_map": ["a=steps"]}, "map: 'a=steps' names no column"),
        ("prompt,a\nvase,1\n", {"column_map": ["a=stpes"]}, "map: 'a=stpes' names no field"),
    ],
)
def test_a_header_that_does_not_fit_is_refused_once(
    tmp_path: Path, text: str, options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(BadInput, match=problem):
        read_file(write(tmp_path / "b.csv", text), **options)


def test_two_unused_columns_of_one_name_are_ignored(tmp_path: Path) -> None:
    path = write(tmp_path / "b.csv", "product,color,note,note\nvase,red,1,2\n")
    good, bad, notes = read_file(path, template=TEMPLATE)
    assert bad == [] and len(good) == 1 and "note" in notes[0]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "yaml"])
def test_an_id_is_used_once(tmp_path: Path, ending: str) -> None:
    text = {
        "csv": "custom_id,prompt\n1,a vase\n1,a mug\n",
        "jsonl": '{"custom_id": 1, "prompt": "a vase"}\n{"custom_id": "1", "prompt": "a mug"}\n',
        "yaml": "rows:\n- {custom_id: 1, prompt: a vase}\n- {custom_id: '1', prompt: a mug}\n",
    }[ending]
    good, bad, _ = read_file(write(tmp_path / f"b.{ending}", text))
    assert len(good) == 1 and "custom_id: '1' is already used in line" in bad[0]


def test_yaml_keeps_what_is_written(tmp_path: Path) -> None:
    text = (
        "defaults: &base {steps: 0020, negative_prompt: off}\n"
        "rows:\n"
        "- {custom_id: 0510210600, product: vase, color: no}\n"
        "- custom_id: 0510\n  product: 012\n  color: on\n"
        "- {custom_id: 1:30, product: 1e3, color: 2026-01-02}\n"
        "- {<<: *base, custom_id: x, product: ~, color: red}\n"
        "- {product: vase, color: red, boxes: [{prompt: a mug, x: 0, y: 0, width: 0.5, height: 1}]}\n"
    )
    good, bad, _ = read_file(write(tmp_path / "b.yaml", text), template=TEMPLATE)
    assert [(row.line, row.custom_id, row.spec.prompt) for row in good] == [
        (3, "0510210600", "a no vase"),
        (4, "0510", "a on 012"),
        (7, "1:30", "a 2026-01-02 1e3"),
        (9, "row-9", "a red vase"),
    ]
    assert {(row.spec.steps, row.spec.negative_prompt) for row in good} == {(20, "off")}
    assert good[-1].spec.boxes[0].width == 0.5
    assert bad == [f"8: template: '{TEMPLATE}' needs product; this row has no value for it"]


@pytest.mark.parametrize(
    "text",
    [
        "rows:\n- &a {prompt: x, more: &b [" + ",".join(["x"] * 50) + "]}\n",
        "rows:\n- {prompt: x, prompt: y}\n",
        "rows:\n- [1]\n- 3\n- {? [1]: 2}\n",
    ],
)
def test_a_yaml_row_that_is_none_is_a_bad_row(tmp_path: Path, text: str) -> None:
    good, bad, _ = read_file(write(tmp_path / "b.yaml", text))
    assert good == [] and bad


def test_aliases_do_not_explode(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [" + ", ".join([f"*a{n - 1}"] * 10) + "]" for n in range(1, 9)]
    text = "rows:\n- {prompt: *a8}\ndefaults:\n" + "".join(f"  {line}\n" for line in lines)
    with pytest.raises(BadInput, match="batch"):
        read_file(write(tmp_path / "b.yaml", text))
    text = "defaults:\n" + "".join(f"  {line}\n" for line in lines) + "rows:\n- {prompt: *a8}\n"
    with pytest.raises(BadInput, match="aliases for too many values"):
        read_file(write(tmp_path / "b.yaml", text))
    with pytest.raises(BadInput, match=r"unknown anchor|nested"):
        read_file(write(tmp_path / "b.yaml", "rows:\n- {prompt: &a [*a]}\n"))


def test_json_names_a_column_once(tmp_path: Path) -> None:
    _, bad, _ = read_file(
        write(tmp_path / "b.jsonl", '{"prompt": "a", "prompt": "b"}\n{"Prompt": "a", "prompt": "b"}')
    )
    assert "names 'prompt' twice" in bad[0] and "is a second value of prompt" in bad[1]


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("a vase", ["a vase"]),
        ("a {red|blue} vase", ["a red vase", "a blue vase"]),
        ("a {red | dark {blue|green}} vase", ["a red vase", "a dark blue vase", "a dark green vase"]),
        ("{a|b}{c|d}", ["ac", "ad", "bc", "bd"]),
        ("a{ big|} vase", ["abig vase", "a vase"]),
        ("a {red} vase", ["a {red} vase"]),
        ("{a|a}", ["a"]),
        ("a | b", ["a | b"]),
    ],
)
def test_wildcards(prompt: str, found: list[str]) -> None:
    assert expand_wildcards(prompt) == found


@settings(max_examples=50, deadline=None)
@given(st.text(alphabet="{}|ab", max_size=14))
def test_wildcards_never_fail(prompt: str) -> None:
    try:
        found = expand_wildcards(prompt)
    except BadInput:
        return
    assert 1 <= len(found) <= MAX_ALTERNATIVES and len(set(found)) == len(found)


def test_too_many_alternatives_are_refused() -> None:
    with pytest.raises(BadInput, match="more than 1000 images"):
        expand_wildcards("{a|b|c|d}" * 12)


def test_a_row_makes_no_more_images_than_a_person_can_want(tmp_path: Path) -> None:
    path = write(tmp_path / "b.csv", "prompt\n{a|b|c} {d|e|f} vase\na mug\n")
    good, bad, _ = read_file(path, seeds=200)
    assert len(good) == 200 and "2: prompt: 1800 images are too many for one row" in bad[0]


@pytest.mark.parametrize("seed", ["1", "x"])
def test_an_upload_has_a_limit_for_good_and_bad_rows(tmp_path: Path, seed: str) -> None:
    path = write(tmp_path / "b.csv", "prompt,seed,width,height\n" + f"a vase,{seed},64,64\n" * 5)
    with Preparation(JobOptions(owner="me")) as prepared:
        checked = check_batch(file_reader(path), prepared, most=5)
        assert (checked.images, len(checked.bad)) == ((5, 0) if seed == "1" else (0, 5))
    with Preparation(JobOptions(owner="me")) as prepared, pytest.raises(BadInput, match="more than 4 images"):
        check_batch(file_reader(path), prepared, most=4)


def test_a_default_of_any_spelling_gives_way_to_the_row(tmp_path: Path) -> None:
    text = "defaults: {Steps: 5, prompt: a vase}\nrows:\n- {steps: 7}\n- {seed: 1}\n"
    good, bad, _ = read_file(write(tmp_path / "b.yaml", text))
    assert bad == [] and [row.spec.steps for row in good] == [7, 5]


def test_a_template_with_wildcards_and_braces() -> None:
    template = Template.parse("{{x}} a {shiny|matt {color}} {Product Name}")
    assert template.columns == {"color", "product_name"}
    filled = template.fill(lambda column: {"color": "red", "product_name": "vase"}[column])
    assert expand_wildcards(filled) == ["{x} a shiny vase", "{x} a matt red vase"]


def test_a_row_becomes_each_point_of_a_grid_with_each_seed(tmp_path: Path) -> None:
    path = write(tmp_path / "b.csv", "custom_id,prompt,seed\nA,a {red|blue} vase,7\n")
    good, bad, _ = read_file(path, grid=["steps=20,30", "sampler=euler,ddim"], seeds=2, variations=2)
    assert bad == [] and len(good) == 2 * 4 * 2 * 2
    assert len({row.custom_id for row in good}) == len({row.spec for row in good}) == 32
    assert [row.custom_id for row in good[:4]] == [
        "A-p1-steps20-samplereuler",
        "A-p1-steps20-samplereuler-v2",
        "A-p1-steps20-samplereuler-s2",
        "A-p1-steps20-samplereuler-s2-v2",
    ]
    assert {row.spec.seed for row in good} == {7, 8}
    path = write(tmp_path / "b.csv", "custom_id,prompt,steps\nA,a vase,7\nB,a mug,\n")
    good, bad, _ = read_file(path, grid=["steps=20,30"])
    assert [row.custom_id for row in good] == ["B-steps20", "B-steps30"] and "2: grid: 'steps'" in bad[0]


@pytest.mark.parametrize(
    "options",
    [
        {"grid": ["stpes=1,2"]},
        {"grid": ["steps"]},
        {"grid": ["steps=a"]},
        {"grid": ["prompt=a,b"]},
        {"grid": ["init=a.png"]},
        {"grid": ["lora=a"]},
        {"grid": ["size=1"]},
        {"grid": ["steps=1", "steps=2"]},
        {"grid": ["seed=" + ",".join(map(str, range(40)))], "seeds": 40},
        {"seeds": "0"},
        {"seeds": "two"},
        {"variations": "1001"},
        {"seed": "random:x"},
        {"column_map": ["a"]},
        {"column_map": ["=b"]},
        {"template": "a {}"},
    ],
)
def test_options_that_say_nothing_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        parse_options(**options)


def test_random_seeds_are_drawn_once(tmp_path: Path) -> None:
    text = "custom_id,product,color,seed\n1,vase,red,\n2,vase,red,\n3,mug,blue,5\n4,mug,blue,random\n"
    path = write(tmp_path / "b.csv", text)
    once = [row.spec.seed for row in read_file(path, template=TEMPLATE, seeds=2, seed="random:1")[0]]
    again = [row.spec.seed for row in read_file(path, template=TEMPLATE, seeds=2, seed="random:1")[0]]
    other = [row.spec.seed for row in read_file(path, template=TEMPLATE, seeds=2, seed="random")[0]]
    assert once == again != other
    assert once[4:6] == other[4:6] == [5, 6], "a row's own seed stays"
    assert len(set(once)) == 8
    _, bad, _ = read_file(path, template=TEMPLATE)
    assert "5: seed: 'random' needs --seed random" in bad[0]


def test_ten_thousand_errors_fit_one_screen() -> None:
    bad = [
        BadRow.of(line, None, BadInput("seed", f"x{line}", "is not a whole number from 0 to 9"))
        for line in range(9000)
    ]
    bad += [
        BadRow.of(line, "a", BadInput(f"field{line % 100}", "v" * 500, "is bad; fix it"))
        for line in range(9000, 10_000)
    ]
    lines = error_lines(bad)
    assert len(lines) == SHOWN_KINDS + 1 <= 20 and max(map(len, lines)) <= 200
    assert lines[0].startswith("lines 0, 1, 2 and 8,997 more: seed: 'x0' is not")
    assert sum(int(str(group["count"])) for group in grouped_errors(bad)) == 10_000
