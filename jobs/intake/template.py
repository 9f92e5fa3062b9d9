"""Prompt templates with `{column}`, and wildcards `{red|blue}`: each alternative is an image of its own."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from jobs.intake.raw_rows import fold_blanks
from render.errors import BadInput

MAX_ALTERNATIVES = 1000
"""Images that the wildcards of one prompt may make."""
_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}|]*)\}|[{}]")
_WILDCARD = re.compile(r"\{([^{}|]*(?:\|[^{}|]*)+)\}")
_OPEN, _CLOSE = "\ue000", "\ue001"
"""Stand for `{{` and `}}` of a template while wildcards are expanded."""


def fold(name: str) -> str:
    """A column's name without case, and with `_` for blanks and hyphens: `Product Name` is `product_name`."""
    return re.sub(r"[\s_-]+", "_", fold_blanks(unicodedata.normalize("NFC", name)).casefold())


@dataclass(frozen=True, kw_only=True)
class Template:
    """A template: text, and between it the names of columns."""

    text: str
    parts: tuple[str, ...]
    """Text and folded names of columns, in turn; the first and the last one are text."""

    @classmethod
    def parse(cls, text: str) -> Template:
        """Raises `BadInput` for a template that is none."""
        parts, end = [""], 0
        depth = 0
        for token in _TOKEN.finditer(text):
            parts[-1] += text[end : token.start()]
            end = token.end()
            if token[0] in ("{{", "}}") and not depth:
                parts[-1] += _OPEN if token[0] == "{{" else _CLOSE
            elif token[1] is not None:
                if not token[1].strip():
                    raise BadInput("template", text, "has empty braces; write the name of a column in them")
                parts += [fold(token[1]), ""]
            else:
                # A brace of a wildcard with columns inside, as in {a {color} one|a plain one}.
                depth += token[0].count("{") - token[0].count("}")
                parts[-1] += token[0]
                if depth < 0:
                    break
        if depth:
            raise BadInput("template", text, "has a brace without its other one; write {column} for a column")
        parts[-1] += text[end:]
        if len(parts) == 1:
            raise BadInput("template", text, "names no columns; write e.g. a photo of a {color} {product}")
        return cls(text=text, parts=tuple(parts))

    @cached_property
    def columns(self) -> frozenset[str]:
        """Folded names."""
        return frozenset(self.parts[1::2])

    def fill(self, value_of: Callable[[str], str]) -> str:
        """The prompt; `value_of` gives the text of a column."""
        return "".join(value_of(part) if place % 2 else part for place, part in enumerate(self.parts))


def expand_wildcards(prompt: str) -> list[str]:
    """The prompts that a prompt with wildcards stands for, the innermost braces first; itself without any.

    Raises `BadInput` for more than `MAX_ALTERNATIVES`.
    """
    rest, found = [prompt], list[str]()
    while rest:
        text = rest.pop()
        wildcard = _WILDCARD.search(text) if "|" in text and "{" in text else None
        if wildcard is None:
            found.append(text.replace(_OPEN, "{").replace(_CLOSE, "}"))
            continue
        before, after = text[: wildcard.start()], text[wildcard.end() :]
        rest += [f"{before}{each.strip()}{after}" for each in reversed(wildcard[1].split("|"))]
        if len(found) + len(rest) > MAX_ALTERNATIVES:
            fix = f"stands for more than {MAX_ALTERNATIVES} images; use fewer wildcards"
            raise BadInput("prompt", prompt[:80], fix)
    # {a|a} and {|} in one place and the other may come out alike.
    return list(dict.fromkeys(found))
