"""Workbooks that unpack to more than memory holds are refused before they are unpacked."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import openpyxl
import pytest

from jobs.intake import workbook_size
from render.errors import BadInput
from tests.jobs.intake.batches import prompts, read_file

SHEET = "xl/worksheets/sheet1.xml"
_MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_ROWS = f'<worksheet xmlns="{_MAIN}"><sheetData>{{}}</sheetData>{{}}</worksheet>'


def packed(path: Path, changes: dict[str, str]) -> Path:
    """A small workbook of one row in which some parts are others."""
    whole = io.BytesIO()
    book = openpyxl.Workbook()
    assert book.active is not None
    for row in (["prompt"], ["a red vase"]):
        book.active.append(row)
    book.save(whole)
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in dict.fromkeys([*old.namelist(), *changes]):
            new.writestr(name, changes.get(name) or old.read(name))
    assert path.stat().st_size < 1 << 20
    return path


@pytest.fixture(autouse=True)
def _small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundredth of the real ones: what has to be packed here is small, too."""
    for name in ("_MOST_BYTES", "_MOST_STRINGS", "_MOST_OTHERS", "_MOST_ROWS", "_MOST_IN_A_ROW"):
        monkeypatch.setattr(workbook_size, name, getattr(workbook_size, name) // 100)


BOMBS = {
    "styles": {"xl/styles.xml": f"<styleSheet>{'<a/>' * 50_000}</styleSheet>"},
    "properties": {"docProps/core.xml": f"<a>{'<a/>' * 50_000}</a>"},
    "one row": {SHEET: _ROWS.format(f"<row>{'<c/>' * 2_500}</row>", "")},
    "rows in a row": {SHEET: _ROWS.format(f"<row>{'<row/><c/>' * 1_500}</row>", "")},
    "rows": {SHEET: _ROWS.format("<row/>" * 10_500, "")},
    "after the rows": {SHEET: _ROWS.format("<row/>", f"<a>{'<a/>' * 2_500}</a>")},
    "another sheet's texts": {"xl/sharedStrings2.xml": "x" * 650_000},
    "all together": {f"xl/worksheets/sheet{n}.xml": "x" * 500_000 for n in range(2, 12)},
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInput, match=r"^batch: .* is too large for a workbook; save it as CSV"):
        read_file(packed(tmp_path / "bomb.xlsx", BOMBS[name]))


def test_a_part_that_is_read_whole_is_not_called_a_sheet(tmp_path: Path) -> None:
    with zipfile.ZipFile(packed(tmp_path / "a.xlsx", {})) as package:
        types = package.read("[Content_Types].xml").decode()
    for place in ("/xl/worksheets/texts.xml", "/xl/media/image1.png"):
        texts = "application/vnd.openxmlformats-officedocument.spreadsheetml.sharedStrings+xml"
        moved = types.replace("</Types>", f'<Override PartName="{place}" ContentType="{texts}"/></Types>')
        file = packed(tmp_path / "b.xlsx", {"[Content_Types].xml": moved, place[1:]: "<sst/>"})
        with pytest.raises(BadInput, match="names its parts as no program does"):
            read_file(file)


def test_what_is_not_read_may_be_large(tmp_path: Path) -> None:
    large = {"xl/calcChain.xml": "x" * 700_000, "xl/media/image1.png": "x" * 700_000}
    rows, problems, _ = read_file(packed(tmp_path / "a.xlsx", large))
    assert prompts(rows) == ["a red vase"] and problems == []


def test_a_damaged_sheet_is_told(tmp_path: Path) -> None:
    file = packed(tmp_path / "a.xlsx", {})
    data = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as package:
        at = package.getinfo(SHEET).header_offset + len(SHEET) + 40
    data[at] ^= 0xFF
    file.write_bytes(data)
    with pytest.raises(BadInput, match=r"^batch: .* is not a workbook \(.+\); save it again"):
        read_file(file)
