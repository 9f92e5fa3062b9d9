"""Prompts as people write them: what is cleaned, what is answered, and the weights of their parts."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from typing import Annotated

from pydantic import AfterValidator

from render.spec.fields import Text, check_filled, problem

LARGEST_WEIGHT = 5.0
_STEP = 1.1
"""What parentheses without a number multiply a weight by, and brackets divide it by."""
_LINES = dict.fromkeys(map(ord, "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"), "\n")
_NOTHING = dict.fromkeys(
    [
        *(code for code in range(0x20) if chr(code) not in "\t\n\r\x0b\x0c\x1c\x1d\x1e"),
        *range(0x7F, 0x85),
        *range(0x86, 0xA0),
        *range(0x202A, 0x202F),
        *range(0x2066, 0x206A),
        *range(0xFDD0, 0xFDF0),
        *(plane << 16 | last for plane in range(17) for last in (0xFFFE, 0xFFFF)),
        0xFEFF,
    ]
)
"""Control characters, noncharacters, and the controls that turn the direction of text around: invisible, and
not allowed in XML or misleading on a page."""
_ANSWERED: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str]], ...] = (
    (
        re.compile(r"<(?:lora|lyco):([^:<>]+)(?::([-+.\d]+))?[^<>]*>", re.IGNORECASE),
        lambda found: (
            f"has {found[0]}, which this field does not read; write --lora "
            f"{found[1]}.safetensors:{found[2] or 1} and leave it out"
        ),
    ),
    (
        re.compile(r"<hypernet:[^<>]*>"),
        lambda found: f"has {found[0]}; hypernetworks are not supported, leave it out",
    ),
    (
        re.compile(r"__([A-Za-z0-9_/*-]+)__"),
        lambda found: f"has the wildcard {found[0]}; write {{red|blue}}, or a batch with a column",
    ),
    (
        re.compile(r"(?<!\S)BREAK(?!\S)"),
        lambda _: "has BREAK; leave it out, long prompts are split at their sentences",
    ),
    (
        # In a text that is not all in capitals.
        re.compile(r"[a-z)\].,:\d]\s+AND\s+(?=[a-z(\[])"),
        lambda _: "has AND, which joins no prompts here; write and, or --box for a part of the image",
    ),
    (
        re.compile(r"(?<!\S)(?:embedding:|<(?:embedding|ti|emb):)([\w/-]+)[^<>\s,]*>?"),
        lambda found: (
            f"has {found[0]}, which this field does not read; write --embedding {found[1]}.safetensors, "
            "and its word here"
        ),
    ),
    (
        re.compile(
            r"<(?:wildcard|random|segment|object|region|clear|break|preset|trigger|lora_[a-z]+):[^<>]*>"
        ),
        lambda found: (
            f"has {found[0]}, which is not read here; leave it out, or write {{red|blue}} for a choice"
        ),
    ),
    (
        re.compile(r"\{\d+(?:-\d+)?\$\$[^{}]*\}"),
        lambda found: f"has {found[0]}; write {{red|blue}} for one of several, without a number",
    ),
    (
        re.compile(r"(?<!\\)\[[^\[\]:|]*(?::[^\[\]:|]*)?:\s*(?:\d+(?:\.\d+)?|\.\d+)\s*\]"),
        lambda found: (
            f"has {found[0]}, and prompts do not change between steps; write e.g. (glaze:0.8) for a weight"
        ),
    ),
    (
        re.compile(r"(?<!\\)\[[^\[\]|]*[^\[\]|\s][^\[\]|]*\|[^\[\]]*\]"),
        lambda found: (
            f"has {found[0]}, and prompts do not change between steps; write {{red|blue}} for a choice"
        ),
    ),
    (
        re.compile(
            r"[(\uff08][^()\uff08\uff09]*(?:[:\uff1a]\s*\d+,\d+|\uff1a\s*\d+(?:\.\d+)?|:\s*\d+\.\d+(?=\uff09))\s*[)\uff09]"
        ),
        lambda found: f"has {found[0]}, which is no weight; write it as (glaze:1.3)",
    ),
    (
        re.compile(r"(?<!\\)\([^()]*:\s*[0-2]\.\d+\s*(?:$|[,;])[^)]*$"),
        lambda found: (
            f"has {found[0][:60]}, a weight without its closing parenthesis; write it as (glaze:1.3)"
        ),
    ),
    (
        re.compile(
            r"(?<!\S)--(?:ar|aspect|v|version|niji|s|stylize|style|q|quality|c|chaos|no|iw|w|weird|tile|sref|cref"
            r"|seed|raw)(?=\s|$)"
        ),
        lambda found: (
            f"has {found[0]}, an option of another program; leave it out, and give flags such as --size"
        ),
    ),
)
_MARKS = re.compile(r"[<\[({\uff08]|__|--|BREAK|AND|embedding:")
"""Each of what is answered has one of these, and so has a weight: most prompts of a catalog have none."""
_EXPLICIT = re.compile(r"(?<!\\)\((?:[^()\\]|\\.)*:\s*([-+]?[\d.]+)\s*\)")
_TOKEN = re.compile(r"\\[()\[\]\\]|[(\[]|:\s*[-+]?(?:\d+\.?\d*|\.\d+)\s*\)|[)\]]|[^\\()\[\]:]+|.", re.DOTALL)


_BLANKS = dict.fromkeys(map(ord, "\u00a0\u2007\u202f"), " ")
"""Blanks that do not break: text from a web page has them, and tokenizers take them for others."""


def clean(text: str) -> str:
    """The text in Unicode's composed form (NFC), without control characters and turned directions."""
    if text.isascii() and text.isprintable():
        return text
    return unicodedata.normalize("NFC", text.translate(_LINES).translate(_NOTHING).translate(_BLANKS))


def _check(text: str) -> str:
    if _MARKS.search(text) is None:
        return text
    for pattern, answer in _ANSWERED:
        if (found := pattern.search(text)) is not None:
            raise problem(answer(found))
    if has_weights(text):
        try:
            weights = [float(found[1]) for found in _EXPLICIT.finditer(text)]
            weights += [weight for _, weight in weighted_parts(text)]
        except ValueError:  # of a number like 1.2.3
            weights = [-1.0]
        if not all(0.0 <= weight <= LARGEST_WEIGHT for weight in weights):
            raise problem(f"has a weight that is not from 0 to {LARGEST_WEIGHT:g}; write e.g. (glaze:1.3)")
    return text


PromptText = Annotated[Text, AfterValidator(clean), AfterValidator(_check)]
FilledPrompt = Annotated[PromptText, AfterValidator(check_filled)]
"""The same, not blank."""


def has_weights(prompt: str) -> bool:
    """Whether a part of the prompt has a weight, as `(glaze:1.3)`."""
    return "(" in prompt and _EXPLICIT.search(prompt) is not None


def weighted_parts(prompt: str) -> list[tuple[str, float]]:
    r"""The parts of a prompt with their weights, in the notation of A1111.

    `(a:1.3)` has the weight 1.3, `(a)` 1.1 and `[a]` 1/1.1, multiplied where they are nested; `\(` is a
    parenthesis. Only for prompts that `has_weights`: in others parentheses and brackets are letters.
    """
    texts: list[str] = []
    weights: list[float] = []
    open_: list[tuple[str, int]] = []

    def scale(start: int, factor: float) -> None:
        weights[start:] = [weight * factor for weight in weights[start:]]

    for token in (match[0] for match in _TOKEN.finditer(prompt)):
        if token in ("(", "["):
            open_.append((token, len(texts)))
        elif token == "]" and open_ and open_[-1][0] == "[":
            scale(open_.pop()[1], 1 / _STEP)
        elif token.endswith(")") and token[0] in ":)" and open_ and open_[-1][0] == "(":
            number = token[1:-1].strip()
            scale(open_.pop()[1], float(number) if number else _STEP)
        else:
            texts.append(token[1:] if token[0] == "\\" and len(token) == 2 else token)
            weights.append(1.0)
    merged: list[tuple[str, float]] = []
    for text, weight in zip(texts, weights, strict=True):
        if merged and merged[-1][1] == weight:
            merged[-1] = merged[-1][0] + text, weight
        else:
            merged.append((text, weight))
    return merged
