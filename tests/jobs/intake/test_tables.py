"""Tables as spreadsheets write them: separators, encodings, line ends, quotes, empty rows, workbooks."""

from __future__ import annotations

import codecs
import csv
import io
from datetime import date
from pathlib import Path

import openpyxl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.intake.open_table import batch_file, open_table
from jobs.intake.raw_rows import Reading
from render.errors import BadInput
from tests.jobs.intake.batches import TEMPLATE, prompts, read_file

_CELL = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zs", "Zl", "Zp"]), max_size=8)


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_what_spreadsheets_save_is_read(tmp_path: Path, separator: str, end: str, encoding: str) -> None:
    lines = [["SKU", "Product", "Color"], ["A-1", "Vase", "grün"], ["A-2", "Schüssel", "rot"]]
    text = "".join(separator.join(line) + end for line in lines)
    good, bad, notes = read_file(
        write(tmp_path / "b.csv", text, encoding), template=TEMPLATE, id_column="sku"
    )
    assert bad == []
    assert [(row.custom_id, row.spec.prompt) for row in good] == [
        ("A-1", "a grün Vase"),
        ("A-2", "a rot Schüssel"),
    ]
    assert any("UTF" in note for note in notes) == (not encoding.startswith("utf-8"))
    assert any("between columns" in note for note in notes) == (separator != ",")


@pytest.mark.parametrize("first", ["sep=;", '"sep=;"', "SEP=;"])
def test_a_first_line_names_the_separator(tmp_path: Path, first: str) -> None:
    path = write(tmp_path / "b.csv", f"{first}\r\nproduct;color\r\nvase, tall;red\r\n")
    good, bad, _ = read_file(path, template=TEMPLATE)
    assert bad == [] and [(row.line, row.spec.prompt) for row in good] == [(3, "a red vase, tall")]


def test_a_tab_may_be_named_as_programs_write_it(tmp_path: Path) -> None:
    path = write(tmp_path / "b.csv", "sep=\\t\nproduct\tcolor\t\nvase\tred\tx\n")
    good, bad, notes = read_file(path, template=TEMPLATE)
    assert len(bad) == 1 and good == [] and "columns: 3" in bad[0]
    path = write(tmp_path / "b.csv", "sep=\\t\n\tproduct\tcolor\nx\tvase\tred\n")
    good, bad, notes = read_file(path, template=TEMPLATE)
    assert prompts(good) == ["a red vase"] and bad == [] and "one without a name" in notes[-1]


def test_the_separator_is_the_one_that_fits_the_lines(tmp_path: Path) -> None:
    text = 'Product, with details;Color\nvase, red, tall;white\n"mug; old";blue\n'
    good, bad, _ = read_file(write(tmp_path / "b.csv", text), template="{Color} {Product, with details}")
    assert bad == [] and prompts(good) == ["white vase, red, tall", "blue mug; old"]


def test_empty_rows_and_cells_at_the_end_are_passed_over(tmp_path: Path) -> None:
    text = "\r\nproduct,color,,\r\nvase,red,,\r\n,\r\n,,,\r\n\r\nmug,blue\r\n , \r\n"
    good, bad, _ = read_file(write(tmp_path / "b.csv", text), template=TEMPLATE)
    assert bad == [] and prompts(good) == ["a red vase", "a blue mug"]


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("crème brûlée", "cp1252"),
        ("Größe 5 µm, 20 € – „schön“", "cp1252"),
        ("½ naïve ×2 ©", "cp1252"),
    ],
)
def test_windows_1252_is_read_and_told(tmp_path: Path, text: str, encoding: str) -> None:
    good, bad, notes = read_file(write(tmp_path / "b.jsonl", f'{{"prompt": "{text}"}}\n', encoding))
    assert bad == [] and prompts(good) == [text]
    assert "Windows-1252" in notes[0] and "--encoding" in notes[0]


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("красная ваза", "cp1251"),
        ("czerwony wazon żółty", "cp1250"),
        ("赤い花瓶", "shift_jis"),
        ("红色花瓶", "gb18030"),
        ("crème café", "mac_roman"),
        ("κόκκινο βάζο", "iso8859_7"),
    ],
)
def test_other_encodings_are_asked_for_and_read_as_told(tmp_path: Path, text: str, encoding: str) -> None:
    path = write(tmp_path / "b.csv", f"custom_id,prompt\n1,a vase\n2,{text}\n", encoding)
    with pytest.raises(BadInput, match="--encoding"):
        read_file(path)
    good, bad, _ = read_file(path, encoding=encoding)
    assert bad == [] and prompts(good) == ["a vase", text]


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "martian", "hex", "utf-16"])
def test_an_encoding_that_does_not_fit_is_refused(tmp_path: Path, encoding: str) -> None:
    path = write(tmp_path / "b.csv", "prompt\na vase in crème\n", "cp1252")
    with pytest.raises(BadInput, match="encoding"):
        read_file(path, encoding=encoding)


def test_a_wrong_quote_hides_no_other_row(tmp_path: Path) -> None:
    rows = [f"{number},vase {number},red" for number in range(2, 500)]
    rows[1] = '3,"12" vase",red'
    rows[100] = "102,vase 102,red,too,many"
    path = write(tmp_path / "b.csv", "\n".join(["custom_id,product,color", *rows]) + "\n")
    good, bad, _ = read_file(path, template=TEMPLATE)
    assert [text.partition(":")[0] for text in bad] == ["3", "102"]
    assert [row.custom_id for row in good] == [str(n) for n in range(2, 500) if n not in (3, 102)]


@pytest.mark.parametrize(
    "last", ["", '9,"9 inch vase,red\n', '9,vase 9",red\n', '9,"a vase",red\n'], ids=lambda text: text[:8]
)
def test_an_open_quote_takes_in_no_rows(tmp_path: Path, last: str) -> None:
    text = 'custom_id,product,color\n2,vase 2,red\n3,"12 inch vase,red\n4,vase 4,red\n5,vase 5,red\n'
    good, bad, _ = read_file(write(tmp_path / "b.csv", text + last), template=TEMPLATE)
    found = {row.custom_id for row in good}
    assert bad[0].startswith("3: quotes:") and {"2", "4", "5"} <= found and "3" not in found


def test_cells_of_several_lines_are_cells(tmp_path: Path) -> None:
    path = write(tmp_path / "b.csv", 'product,color\n"vase,\ntall\n\nand thin",red\nmug,blue\n')
    good, bad, _ = read_file(path, template=TEMPLATE)
    assert bad == [] and prompts(good) == ["a red vase,\ntall\n\nand thin", "a blue mug"]
    for end in ("\r", "\r\n"):
        path = write(tmp_path / "b.csv", f'product,color{end}"vase{end}tall",red{end}')
        assert prompts(read_file(path, template=TEMPLATE)[0]) == ["a red vase\ntall"]


@settings(max_examples=60, deadline=None)
@given(
    table=st.integers(2, 4).flatmap(
        lambda width: st.lists(st.lists(_CELL, min_size=width, max_size=width), min_size=1, max_size=5)
    ),
    separator=st.sampled_from(",;\t|"),
)
def test_what_a_csv_writer_writes_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, table: list[list[str]], separator: str
) -> None:
    columns = [f"c{number}" for number in range(len(table[0]))]
    text = io.StringIO()
    csv.writer(text, delimiter=separator).writerows([columns, *table])
    path = tmp_path_factory.mktemp("table") / "b.csv"
    path.write_text(text.getvalue(), encoding="utf-8", newline="")
    with open_table(Reading(path=path)) as found:
        assert found.columns == tuple(columns)
        rows = [list(values.values()) for _, values in found.rows if isinstance(values, dict)]
    assert rows == [row for row in table if any(row)]


def workbook(path: Path, rows: list[list[object]], title: str = "Products") -> openpyxl.Workbook:
    book = openpyxl.Workbook()
    assert book.active is not None
    book.active.title = title
    for row in rows:
        book.active.append(row)
    book.save(path)
    return book


def test_a_workbook_is_read_as_it_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "b.xlsx"
    rows: list[list[object]] = [
        ["SKU", "Product", "Color", "Steps", "Strength", "Made", None],
        [510, "vase", "no", 20.0, 0.3, date(2026, 1, 2)],
        [4006381333931, "mug", True, 5, None, None],
        [None, None, None],
        ["007", "bowl", "rot", None, None, None],
    ]
    book = workbook(path, rows)
    assert book.active is not None
    book.active["A2"].number_format = "00000"
    book.save(path)
    template = TEMPLATE + " {Made}"
    good, bad, notes = read_file(path, template="a {color} {product}", id_column="SKU")
    assert bad == [] and "Made" in notes[0]
    assert [(row.line, row.custom_id, row.spec.prompt) for row in good] == [
        (2, "00510", "a no vase"),
        (3, "4006381333931", "a TRUE mug"),
        (5, "007", "a rot bowl"),
    ]
    assert (good[0].spec.steps, good[0].spec.strength) == (20, 0.3)
    good, bad, _ = read_file(path, template=template, id_column="SKU")
    assert prompts(good) == ["a no vase 2026-01-02"] and len(bad) == 2


def test_a_workbook_with_several_sheets(tmp_path: Path) -> None:
    path = tmp_path / "b.xlsx"
    book = workbook(path, [["prompt"], ["a vase"]])
    book.create_sheet("Others").append(["prompt"])
    book["Others"].append(["a mug"])
    book.create_sheet("Hidden").sheet_state = "hidden"
    book.save(path)
    good, _, notes = read_file(path)
    assert prompts(good) == ["a vase"] and "Products, Others" in notes[0]
    assert prompts(read_file(path, sheet="others")[0]) == ["a mug"]
    with pytest.raises(BadInput, match="sheet: 'Prices' is not in the workbook; use one of Products, Others"):
        read_file(path, sheet="Prices")


def test_what_a_workbook_cannot_tell_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "b.xlsx"
    workbook(path, [["prompt", "seed"], ["a vase", 1234567890123456789], ["a mug", 7], ["#REF!", 1]])
    book = openpyxl.load_workbook(path)
    assert book.active is not None
    book.active["A4"].data_type = "e"
    book.save(path)
    good, bad, _ = read_file(path)
    assert [row.spec.seed for row in good] == [7]
    assert "was rounded" in bad[0] and "is an error of the spreadsheet" in bad[1]
    workbook(path, [["prompt"], ["=A1"]])
    with pytest.raises(BadInput, match="no value of the formula in A2"):
        read_file(path)


@pytest.mark.parametrize("data", [b"", b"prompt\na vase\n", b"PK\x03\x04" + b"\0" * 60])
def test_what_is_no_workbook_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "b.xlsx"
    path.write_bytes(data)
    with pytest.raises(BadInput, match="is not a workbook"):
        read_file(path)


@pytest.mark.parametrize("name", ["b.xls", "b.ods", "b.txt", "b.json", "no-ending", "b.parquet"])
def test_a_file_of_another_kind_is_never_a_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_text("prompt\na vase\n")
    with pytest.raises(BadInput, match="is a file of another kind"):
        batch_file(name)


@pytest.mark.parametrize(
    "text", ["a red vase", "vase", "", "a vase, 50.5 cm", "e.g. a vase", "x" * 9000, "a\0b"]
)
def test_words_are_a_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert batch_file(text) is None


def test_a_mark_of_the_byte_order_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    path = tmp_path / "b.csv"
    path.write_bytes(codecs.BOM_UTF8 + b'"custom_id",prompt\n1,a vase\n')
    assert [row.custom_id for row in read_file(path)[0]] == ["1"]
