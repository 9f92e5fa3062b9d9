"""Text of users, files and other machines on its way to a terminal, a log or a page."""

from __future__ import annotations

import re

_UNPRINTABLE = re.compile(
    # C0 and C1 control characters, and the separators and format characters that can hide, reorder or
    # split text. The zero-width joiners stay: Persian and emoji need them.
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def printable(text: object, keep: str = "") -> str:
    """`text` without anything that a terminal or a line of text interprets, such as escape sequences.

    Tabs and line breaks become spaces, and other control characters their escapes (`\\x1b`, `\\u202e`).
    Characters in `keep` stay.
    """

    def replaced(match: re.Match[str]) -> str:
        character = match[0]
        if character in keep:
            return character
        return " " if character in "\t\n\r" else ascii(character)[1:-1]

    return _UNPRINTABLE.sub(replaced, str(text))


def printable_json(text: str) -> str:
    """A JSON document with the same characters as JSON escapes; it decodes to the same values."""

    def escaped(match: re.Match[str]) -> str:
        return re.sub("....", r"\\u\g<0>", match[0].encode("utf-16-be", "surrogatepass").hex())

    return _UNPRINTABLE.sub(escaped, text)
