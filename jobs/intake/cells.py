"""What a cell stands for: numbers as spreadsheets write them, and text as it is written."""

from __future__ import annotations

import re
from typing import Any

from jobs.intake.number_text import NumberText
from render.errors import BadInput
from render.spec import SpecField

_ROUNDED = re.compile(r"[+-]?\d([.,]\d+)?E\+?\d+", re.IGNORECASE)
_ROUNDED_ID = re.compile(r"\d([.,]\d+)?E\+\d\d+")
"""As Excel shows a long number: 4.00638E+12. Without the sign it may be an article number."""
_WHOLE = re.compile(r"([+-]?\d+)([.,](0+))?")
_DECIMAL = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?")
_PERCENT = re.compile(r"(\d{1,9}(?:[.,]\d{1,9})?)\s*%", re.ASCII)
_NO_NUMBERS = ("nan", "inf", "infinity")
_EXACT = 2**53
_SPREADSHEET_ERROR = re.compile(r"#[¡¿]?[A-ZÀ-Ü0/]{2,}[!?]|#N/[AD]|#NV|Err:\d{3}|#{3,}")
"""As Excel, LibreOffice and Google write an error into a CSV file, in several languages."""
_BEGIN_NO_VALUE = ("#", "E", "=")
"""How these and formulas begin."""
_FORMULA = re.compile(r"=[A-Z][A-Z.]+\(.*", re.DOTALL)


def parse_cell(field: SpecField, value: Any) -> Any:
    """The value of a field that a cell stands for: `20.0` is 20, `0,3` is 0.3. Raises `BadInput`.

    What is not text, as in JSON, stays, but for a whole number that is written as a fraction.
    """
    if isinstance(value, float) and field.kind is int and value.is_integer() and abs(value) < _EXACT:
        return int(value)
    if not isinstance(value, str):
        return value
    if field.kind in (int, float) and isinstance(value, NumberText):
        value = value.plain
    if field.kind is int:
        return _whole(field, value.strip())
    if field.kind is float:
        text = value.strip()
        if (share := _PERCENT.fullmatch(text)) is not None:
            number = float(share[1].replace(",", ".")) / 100
            raise BadInput(field.name, text, f"is a percentage; write {number:g}")
        # float() itself also takes 1_000, and the digits of other scripts.
        if not (_DECIMAL.fullmatch(text) or text.lower().lstrip("+-") in _NO_NUMBERS):
            raise BadInput(field.name, text[:80], field.problem_with(text))
        return field.parse(text.replace(",", "."))
    return field.parse(str(value))


def _whole(field: SpecField, text: str) -> int:
    match = _WHOLE.fullmatch(text) if text.isascii() else None
    if match is None:
        if _ROUNDED.fullmatch(text):
            raise BadInput(field.name, text, _ROUNDED_FIX)
        raise BadInput(field.name, text[:80], field.problem_with(text))
    if match[3] and len(match[3]) == 3:
        raise BadInput(field.name, text, "may be thousands or a fraction; write it without separators")
    if len(match[1]) > 1000:
        raise BadInput(field.name, text[:80], field.problem_with(text))
    return int(match[1])


_ROUNDED_FIX = "was rounded by a spreadsheet; format its column as text or as a number without decimals"


def check_no_error(name: str, value: Any) -> None:
    """Raise `BadInput` for the error of a cell, and for a formula in place of its value."""
    if isinstance(value, BadInput):
        raise BadInput(name, value.value, value.fix)
    if not isinstance(value, str) or (text := value.strip())[:1] not in _BEGIN_NO_VALUE:
        return
    if _SPREADSHEET_ERROR.fullmatch(text):
        raise BadInput(name, value, "is an error of the spreadsheet; correct the formula")
    if _FORMULA.fullmatch(text):
        raise BadInput(name, value[:80], "is a formula and not its value; save the file with its values")


def check_rounded_id(name: str, text: str) -> None:
    """Raise `BadInput` for an id of which a spreadsheet has kept the first digits only."""
    if _ROUNDED_ID.fullmatch(text):
        raise BadInput(name, text, _ROUNDED_FIX)


def cell_text(name: str, value: Any) -> str:
    """A cell as a prompt or an id shows it; raises `BadInput` for a list or names and values."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    try:
        if isinstance(value, int | float):
            return str(value)
    except ValueError:
        # Python does not write numbers of thousands of digits.
        pass
    raise BadInput(name, value, "is not text or a number; write it as text")
