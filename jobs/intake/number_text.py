"""Numbers and dates of a workbook: the text that a cell shows, for ids and prompts, and the number itself."""

from __future__ import annotations

import re
from decimal import Decimal

_EXACT = 10**15
"""A spreadsheet keeps 15 digits of a number and rounds the rest away."""
_IGNORED = re.compile(r"\[[^\]]*\]|_.|\*.")
"""Of a format: colors and locales, blanks of the width of a sign, signs that fill the cell."""
_LITERAL = re.compile(r'"([^"]*)"|\\(.)')
_FORMAT = re.compile(
    r"(?P<before>[^0#?.,%E]*)(?P<whole>[0#?]*)(?P<point>\.(?P<digits>[0#?]*))?"
    r"(?P<percent>%?)(?P<after>[^0#?.,%E]*)"
)
_PARTS = re.compile(r"[^0#?.,%E]*0[-0 /.]*0[^0#?.,%E]*")
"""Digits in groups, as in 000-000."""


class NumberText(str):
    """The text that a cell shows."""

    plain: str
    """The number, as a field of a spec reads it."""

    def __new__(cls, shown: str, plain: str) -> NumberText:
        text = super().__new__(cls, shown)
        text.plain = plain
        return text


class DateText(str):
    """A date of a workbook in ISO 8601: spreadsheets also make dates of what is none, such as 3-5 or MAR1."""


def number_text(value: float, shown_as: str) -> NumberText:
    """The text of a number in a number format of a workbook.

    Formats with thousands, exponents, fractions and the like are left aside: such a number is shown plainly.
    """
    if abs(value) >= _EXACT:
        rounded = f"{Decimal(value):.5E}"
        return NumberText(rounded, rounded)
    plain = str(int(value)) if value == int(value) else f"{value:.15g}"
    return NumberText(_shown(plain, shown_as), plain)


def _shown(plain: str, shown_as: str) -> str:
    literals: list[str] = []

    def put_aside(found: re.Match[str]) -> str:
        literals.append(found[1] if found[1] is not None else found[2])
        return chr(0xE000 + len(literals) - 1)

    section = _LITERAL.sub(put_aside, shown_as).split(";")[0]
    section = _IGNORED.sub("", section).strip()
    if plain.startswith("-") or len(literals) > 100 or re.search("[A-DF-Za-z@]", section):
        return plain
    match = _FORMAT.fullmatch(section)
    shown = _in_groups(plain, section) if match is None else _in_format(plain, match)
    return plain if shown is None else "".join(_literal(sign, literals) for sign in shown).strip()


def _literal(sign: str, literals: list[str]) -> str:
    place = ord(sign) - 0xE000
    return literals[place] if 0 <= place < len(literals) else sign


def _in_format(plain: str, match: re.Match[str]) -> str | None:
    if not (match["whole"] or match["point"]):
        return None
    number = Decimal(plain) * (100 if match["percent"] else 1)
    digits = match["digits"] or ""
    text = f"{number:.{len(digits)}f}"
    whole, point, rest = text.partition(".")
    optional = len(digits) - len(digits.rstrip("#?"))
    for _ in range(optional):
        rest = rest.removesuffix("0") if rest.endswith("0") else rest
    whole = whole.zfill(match["whole"].count("0"))
    return match["before"] + whole + (point if rest else "") + rest + match["percent"] + match["after"]


def _in_groups(plain: str, section: str) -> str | None:
    """Digits from the right into the places of a format as 000-000."""
    if not (_PARTS.fullmatch(section) and plain.isdigit()) or "." in section:
        return None
    rest, shown = list(plain), []
    first = section.index("0")
    for place in range(len(section) - 1, -1, -1):
        if section[place] != "0":
            shown.append(section[place])
            continue
        shown.append(rest.pop() if rest else "0")
        if place == first:
            shown.extend(reversed(rest))
    return "".join(reversed(shown))
