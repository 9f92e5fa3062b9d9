"""What spreadsheet programs leave in files: read as a person sees it, or refused in one sentence."""

from __future__ import annotations

import zipfile
from datetime import datetime
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from jobs.intake.number_text import number_text
from jobs.intake.open_table import batch_file
from render.errors import BadInput
from tests.jobs.intake.batches import TEMPLATE, prompts, read_file


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def save(path: Path, rows: list[list[Any]], prepare: Any = None) -> Path:
    book = openpyxl.Workbook()
    sheet: Any = book.active
    for row in rows:
        sheet.append(row)
    if prepare is not None:
        prepare(sheet)
    book.save(path)
    return path


@pytest.mark.parametrize(
    ("value", "shown_as", "shown"),
    [
        (510, "00000", "00510"),
        (7, '"SKU-"0000', "SKU-0007"),
        (123456, "000-000", "123-456"),
        (1234567, "000-000", "1234-567"),
        (56, "000-000", "000-056"),
        (0.3, "0%", "30%"),
        (0.125, "0.0%", "12.5%"),
        (12.5, "0.00", "12.50"),
        (12.5, "0.##", "12.5"),
        (12, "0.##", "12"),
        (20, '0" cm"', "20 cm"),
        (12.5, "#,##0.00", "12.5"),
        (0.1 + 0.2, "General", "0.3"),
        (19.999999999999996, "General", "20"),
        (-7, "00000", "-7"),
        (7, "[Red]0000;[Blue]-0000", "0007"),
        (1e15, "0", "1.00000E+15"),
        (10**400, "General", "1.00000E+400"),
        (3.25, "# ?/?", "3.25"),
        (44927, "@", "44927"),
    ],
)
def test_a_number_is_shown_in_its_format(value: float, shown_as: str, shown: str) -> None:
    assert number_text(value, shown_as) == shown


def test_a_cell_is_text_for_ids_and_prompts_and_a_number_for_fields(tmp_path: Path) -> None:
    def prepare(sheet: Any) -> None:
        for name, shown_as in (("A2", '"SKU-"0000'), ("C2", "0%"), ("D2", '0" steps"'), ("E2", "0%")):
            sheet[name].number_format = shown_as

    rows = [["sku", "product", "strength", "steps", "Rebate"], [7, "vase_x000D_", 0.3, 20, 0.15]]
    path = save(tmp_path / "b.xlsx", rows, prepare)
    good, bad, _ = read_file(path, template="a {product}, {rebate} off", id_column="sku")
    assert bad == [] and (good[0].custom_id, good[0].spec.prompt) == ("SKU-0007", "a vase, 15% off")
    assert (good[0].spec.strength, good[0].spec.steps) == (0.3, 20)


def test_merged_cells_count_for_each_of_their_rows(tmp_path: Path) -> None:
    rows = [["product", "color", "steps"], ["vase", "red", 7], [None, "blue", None], [], ["mug", "red", None]]
    path = save(tmp_path / "b.xlsx", rows, lambda sheet: [sheet.merge_cells(a) for a in ("A2:A3", "C2:C3")])
    good, bad, notes = read_file(path, template=TEMPLATE)
    assert bad == [] and prompts(good) == ["a red vase", "a blue vase", "a red mug"]
    assert [row.spec.steps for row in good] == [7, 7, 25] and "merged cells" in notes[0]


@pytest.mark.parametrize("area", ["A1:C1", "A1:A2"])
def test_a_header_of_merged_cells_is_refused(tmp_path: Path, area: str) -> None:
    path = save(tmp_path / "b.xlsx", [["product", "color"], ["vase", "red"]], lambda s: s.merge_cells(area))
    with pytest.raises(BadInput, match=f"merged cells in its header .{area}."):
        read_file(path, template=TEMPLATE)


def test_a_date_where_there_should_be_words_is_told(tmp_path: Path) -> None:
    day = datetime(2026, 5, 3)
    path = save(
        tmp_path / "b.xlsx", [["product", "color", "updated"], ["vase", day, day], ["mug", "red", day]]
    )
    good, bad, notes = read_file(path, template=TEMPLATE)
    assert bad == [] and prompts(good) == ["a 2026-05-03 vase", "a red mug"]
    assert notes[1:] == [
        "the column color has dates, as 2026-05-03; format it as text in the workbook if that is not meant"
    ]
    _, _, notes = read_file(path, template="a {product}")
    assert len(notes) == 1


@pytest.mark.parametrize("ids", [("SKU-1", "sku-1"), ("STRASSE", "straße")])
def test_ids_that_differ_in_capitals_only_are_told(tmp_path: Path, ids: tuple[str, str]) -> None:
    path = write(tmp_path / "b.csv", "custom_id,prompt\nSKU-0,a\n{},b\n{},c\n".format(*ids))
    good, bad, notes = read_file(path)
    assert (
        len(good) == 3 and bad == [] and notes[0].startswith(f"the ids {ids[0]} and {ids[1]} differ in cap")
    )


def test_hidden_rows_are_told(tmp_path: Path) -> None:
    def hide(sheet: Any) -> None:
        for line in (3, 9):
            sheet.row_dimensions[line].hidden = True

    path = save(tmp_path / "b.xlsx", [["prompt"], ["a vase"], ["a mug"]], hide)
    good, _, notes = read_file(path)
    assert len(good) == 2 and notes == ["hidden rows are read too (lines 3); delete those that are not meant"]


def test_an_error_matters_where_its_column_is_used(tmp_path: Path) -> None:
    rows = [["product", "color", "price"], ["vase", "red", "#N/A"], ["#REF!", "red", 1]]
    good, bad, _ = read_file(save(tmp_path / "b.xlsx", rows), template=TEMPLATE)
    assert prompts(good) == ["a red vase"] and "is an error of the spreadsheet" in bad[0]


@pytest.mark.parametrize(
    "cell",
    ["#N/A", "#REF!", "#DIV/0!", "#NAME?", "#WERT!", "#NV", "#¡REF!", "Err:502", "####", "=SUM(A1:A2)"],
)
def test_an_error_in_a_csv_is_no_word(tmp_path: Path, cell: str) -> None:
    path = write(tmp_path / "b.csv", f"product,color,price\n{cell},red,1\nvase,red,{cell}\n")
    good, bad, _ = read_file(path, template=TEMPLATE)
    assert prompts(good) == ["a red vase"] and len(bad) == 1 and bad[0].startswith("2: product: ")


@pytest.mark.parametrize("cell", ['="00510"', '"=""00510"""', "'00510"])
def test_what_keeps_leading_zeros_is_no_part_of_an_id(tmp_path: Path, cell: str) -> None:
    good, bad, _ = read_file(write(tmp_path / "b.csv", f"custom_id,prompt\n{cell},'70s vase\n"))
    assert bad == [] and (good[0].custom_id, good[0].spec.prompt) == ("00510", "'70s vase")


@pytest.mark.parametrize("ending", ["csv", "xlsx"])
def test_a_header_in_the_middle_is_no_row(tmp_path: Path, ending: str) -> None:
    rows = [["product", "color"], ["vase", "red"], ["product", "color"], ["mug", "blue"]]
    path = tmp_path / f"b.{ending}"
    if ending == "xlsx":
        save(path, rows)
    else:
        write(path, "".join(",".join(row) + "\n" for row in rows))
    good, bad, _ = read_file(path, template=TEMPLATE)
    assert len(good) == 2 and bad == ["3: row: repeats the header; delete it"]


@pytest.mark.parametrize("name", ["\ufeffproduct", "pro\u00adduct\u200b", "\u00a0Product\u2060 "])
def test_signs_that_nobody_sees_are_no_part_of_a_name(tmp_path: Path, name: str) -> None:
    good, bad, _ = read_file(write(tmp_path / "b.csv", f"\ufeff{name},color\nvase,red\n"), template=TEMPLATE)
    assert bad == [] and prompts(good) == ["a red vase"]


def test_an_id_in_two_forms_of_unicode_is_one(tmp_path: Path) -> None:
    path = write(tmp_path / "b.csv", "custom_id,prompt\ncr\u00e8me,a\ncre\u0300me,b\n")
    good, bad, _ = read_file(path)
    assert len(good) == 1 and "is already used in line 2" in bad[0]


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (b"PK\x03\x04" + bytes(60), "rename a workbook to .xlsx"),
        (b"\xd0\xcf\x11\xe0" + bytes(60), "save it as .xlsx"),
        (b"\x1f\x8b\x08" + bytes(60), "unpack it"),
        (b"\n<!DOCTYPE html><table>", "is a web page"),
        ("product\nÜber\n".encode() + b"\xfcber\n", "--encoding"),
    ],
)
def test_what_is_no_text_of_a_table_is_refused(tmp_path: Path, data: bytes, answer: str) -> None:
    (tmp_path / "b.csv").write_bytes(data)
    with pytest.raises(BadInput, match=answer):
        read_file(tmp_path / "b.csv", template="a {product}")


def test_a_locked_and_a_strict_workbook_are_told(tmp_path: Path) -> None:
    (tmp_path / "locked.xlsx").write_bytes(b"\xd0\xcf\x11\xe0" + bytes(600))
    with pytest.raises(BadInput, match="has a password"):
        read_file(tmp_path / "locked.xlsx")
    with zipfile.ZipFile(tmp_path / "strict.xlsx", "w") as package:
        package.writestr(
            "xl/workbook.xml", '<workbook xmlns="http://purl.oclc.org/ooxml/spreadsheetml/main"/>'
        )
    with pytest.raises(BadInput, match="Strict Open XML"):
        read_file(tmp_path / "strict.xlsx")


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ('{"prompt": NaN}', "has NaN, which is not JSON; write null"),
        ('{"prompt": "a", "strength": Infinity}', "has Infinity"),
        ('[{"prompt": "a"}]', "a JSON list; write one object"),
        ("[", "a JSON list; write one object"),
        ('{"prompt": "a"} // comment', "not valid JSON"),
        ('{"prompt": "a"},', "ends with a comma; write one object for each line"),
        ('{"prompt": "a", }', "has a comma before a closing bracket"),
        ('{"prompt": "a", "boxes": [1,]}', "has a comma before a closing bracket"),
        ("]", "a JSON list; write one object"),
        ("{", "write each object in one line"),
    ],
)
def test_a_line_that_is_no_json_object_is_told(tmp_path: Path, line: str, answer: str) -> None:
    good, bad, _ = read_file(write(tmp_path / "b.jsonl", line + "\n"))
    assert good == [] and answer in bad[0]


def test_a_percentage_and_a_unit_are_told(tmp_path: Path) -> None:
    path = write(tmp_path / "b.csv", "product,color,strength,Steps (n)\nvase,red,30%,7\nmug,red,0.3,7\n")
    good, bad, notes = read_file(path, template=TEMPLATE)
    assert len(good) == 1 and "'30%' is a percentage; write 0.3" in bad[0]
    assert "did you mean steps by Steps (n)?" in notes[0]


@pytest.mark.parametrize(("text", "answer"), [("-", "standard input"), ("feeds/", "is a folder")])
def test_a_place_is_no_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, answer: str
) -> None:
    (tmp_path / "feeds").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=answer):
        batch_file(text)
    assert batch_file("feeds") is None and batch_file(" feed.csv ") == Path("feed.csv")
