"""CLIP's vocabulary, which the package carries for single files. No torch."""

from __future__ import annotations

import gzip
from functools import lru_cache
from importlib import resources


@lru_cache(maxsize=1)
def byte_pairs() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """CLIP's vocabulary and merges (openai/CLIP, MIT), in the order that gives its token numbers."""
    data = (resources.files("render.models") / "clip_merges.txt.gz").read_bytes()
    merges = [
        (left, right) for left, right in (line.split() for line in gzip.decompress(data).decode().split("\n"))
    ]
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = [chr(byte) for byte in printable] + [
        chr(0x100 + number) for number in range(256 - len(printable))
    ]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *(left + right for left, right in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    return {word: number for number, word in enumerate(words)}, merges
