"""What a text encoder does not read of a prompt, because it is longer than the model takes. No torch.

CLIP families read a prompt to its end (`render.models.clip_prompts`) and declare no limit. The others cut it,
as their stock pipelines do: what is lost is told before a job is queued and stands in the manifest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from render.model_info import ModelInfo
from render.models.clip_vocabulary import byte_pairs
from render.models.config_files import read_json
from render.models.folder import SENTENCEPIECE, family_of
from render.models.registry import FAMILIES, Family, PromptLimit
from render.spec.prompt_text import has_weights

_SHORTEST = min(
    limit.tokens - len(limit.before.encode())
    for family in FAMILIES.values()
    for limit in family.prompt_limits
)
_SHOWN = 60
"""Characters of what is dropped, in a message."""
_QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
"""How Qwen2's tokenizer splits a text (`transformers.models.qwen2.tokenization_qwen2`)."""

_CLIP_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""How CLIP's does (`transformers.models.clip.tokenization_clip`)."""


@dataclass(frozen=True, kw_only=True)
class DroppedText:
    """The end of a prompt that the model does not read."""

    field: str
    """`prompt` or `negative_prompt`."""
    tokens: int
    """Of the whole prompt."""
    read: int
    """Of these the model reads so many."""
    text: str

    def __str__(self) -> str:
        start = self.text if len(self.text) <= _SHOWN else f"{self.text[:_SHOWN]}..."
        return (
            f"{self.field}: has {self.tokens} tokens, of which the model reads {self.read}; "
            f"shorten it, {start!r} is dropped"
        )


@dataclass(frozen=True)
class Tokens:
    """A tokenizer without its special tokens."""

    encode: Callable[[str], Sequence[int]]
    decode: Callable[[Sequence[int]], str]


def dropped_prompts(folder: Path, texts: Mapping[str, str]) -> tuple[DroppedText, ...]:
    """What a model, read from its folder, drops of these prompts by field.

    Nothing where its tokenizer cannot be read without its package: it is refused elsewhere.
    """
    limit = _limit_of_folder(folder)
    if limit is None or not _may_exceed(limit, texts):
        return ()
    tokens = _clip_tokens() if folder.is_file() else _tokens(folder / limit.part)
    return _dropped(limit, tokens, texts)


def dropped_by(pipeline: Any, info: ModelInfo, texts: Mapping[str, str]) -> tuple[DroppedText, ...]:
    """The same of a loaded stock pipeline."""
    family = next((each for each in FAMILIES.values() if each.name == info.family), None)
    limit = _limit(family, lambda part: getattr(pipeline, part, None) is not None)
    if limit is None or not _may_exceed(limit, texts):
        return ()
    tokenizer = getattr(pipeline, limit.part)
    if "Processor" in type(tokenizer).__name__:
        tokenizer = tokenizer.tokenizer

    def encode(text: str) -> list[int]:
        found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    return _dropped(limit, Tokens(encode, tokenizer.decode), texts)


def weights_note(folder: Path, texts: Iterable[str]) -> str:
    """What to tell of weights as (glaze:1.3) for a model that takes them for letters; else empty."""
    if not any(map(has_weights, texts)):
        return ""
    family = family_of(folder)
    if not family.prompt_limits:
        return ""  # of a CLIP family
    return f"prompt: {family.name} reads weights such as (glaze:1.3) as letters; leave them out"


def may_be_long(text: str) -> bool:
    """Whether any model drops a part of a text: a token is a byte at least."""
    return len(text.encode()) >= _SHORTEST


@lru_cache(maxsize=32)
def _limit_of_folder(folder: Path) -> PromptLimit | None:
    if folder.is_file():
        parts = read_json(folder, "model_index.json")
        return _limit(family_of(folder), lambda part: part in parts)
    return _limit(family_of(folder), lambda part: (folder / part).is_dir())


def _limit(family: Family | None, is_present: Callable[[str], bool]) -> PromptLimit | None:
    limits = () if family is None else family.prompt_limits
    return next((limit for limit in limits if is_present(limit.part)), None)


def _may_exceed(limit: PromptLimit, texts: Mapping[str, str]) -> bool:
    """A token is a byte at least, and the text before the prompt takes no more than its bytes."""
    return any(len((limit.before + text).encode()) >= limit.tokens for text in texts.values())


def _dropped(limit: PromptLimit, tokens: Tokens, texts: Mapping[str, str]) -> tuple[DroppedText, ...]:
    read = limit.tokens - (len(tokens.encode(limit.before)) if limit.before else 0)
    found = []
    for field, text in texts.items():
        numbers = tokens.encode(text)
        if len(numbers) > read:
            rest = tokens.decode(numbers[read:])
            found.append(DroppedText(field=field, tokens=len(numbers), read=read, text=rest))
    return tuple(found)


@lru_cache(maxsize=8)
def _tokens(part: Path) -> Tokens:
    published = [part / name for name in ("tokenizer.model", SENTENCEPIECE) if (part / name).is_file()]
    if published and not (part / "tokenizer.json").is_file():
        from sentencepiece import SentencePieceProcessor

        pieces = SentencePieceProcessor(model_file=str(published[0]))
        return Tokens(pieces.encode, lambda numbers: pieces.decode(list(numbers)))
    tokenizer = _fast(part)
    return Tokens(
        lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
        lambda numbers: tokenizer.decode(list(numbers)),
    )


@lru_cache(maxsize=1)
def _clip_tokens() -> Tokens:
    """Of the tokenizer that the package carries for single files."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    vocabulary, merges = byte_pairs()
    made = Tokenizer(models.BPE(dict(vocabulary), list(merges), end_of_word_suffix="</w>"))
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    made.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
    words = pre_tokenizers.Split(Regex(_CLIP_WORDS), behavior="removed", invert=True)
    made.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    made.decoder = decoders.ByteLevel()
    return Tokens(
        lambda text: made.encode(text).ids,
        lambda numbers: made.decode(list(numbers)).replace("</w>", " ").strip(),
    )


def _fast(part: Path) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    if (part / "tokenizer.json").is_file():
        read = Tokenizer.from_file(str(part / "tokenizer.json"))
        read.no_truncation()
        read.no_padding()
        return read
    made = Tokenizer(models.BPE.from_file(str(part / "vocab.json"), str(part / "merges.txt")))
    made.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(_QWEN_WORDS), behavior="isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
    made.decoder = decoders.ByteLevel()
    return made
