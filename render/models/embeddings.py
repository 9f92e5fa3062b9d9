"""Learned words (textual inversion) on a loaded model, by diffusers' loader: put on and taken off.

A text encoder's table of vectors and its tokenizer are kept as they were before the first word, so that
taking words off gives back the model bit for bit.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from safetensors.torch import load_file
from torch import Tensor

from render.errors import BadInput
from render.models.load_errors import load_errors
from render.models.loading import quiet
from render.models.skeletons import is_skeleton
from render.spec.embedding import Embedding

_originals: WeakKeyDictionary[Any, dict[str, tuple[Any, Tensor]]] = WeakKeyDictionary()
"""The tokenizer and the table of each text encoder, of pipelines that have learned words."""


def set_embeddings(pipeline: Any, embeddings: Sequence[Embedding]) -> None:
    """Make these the learned words of a stock pipeline's text encoders, in place of those it has.

    Raises `BadInput` for one that does not fit the model, or whose word the model knows already.
    """
    _restore(pipeline)
    if not embeddings:
        return
    if not hasattr(pipeline, "load_textual_inversion"):
        fix = f"does not go with a {type(pipeline).__name__}; leave it out"
        raise BadInput("embedding", embeddings[0].path, fix)
    _originals[pipeline] = {
        part: (tokenizer, encoder.get_input_embeddings().weight.data)
        for part, tokenizer, encoder in _encoders(pipeline)
    }
    for part, tokenizer, _ in _encoders(pipeline):
        setattr(pipeline, _tokenizer_of(part), copy.deepcopy(tokenizer))
    for embedding in embeddings:
        _load(pipeline, embedding)


def _load(pipeline: Any, embedding: Embedding) -> None:
    def refuse(reason: str) -> BadInput:
        return BadInput(
            "embedding", embedding.path, f"does not fit the model ({reason}); use one made for it"
        )

    with load_errors(refuse):
        tensors = load_file(embedding.path)
    for part, tokenizer, encoder in _encoders(pipeline):
        name = embedding.tensor_for(part)
        if name is None:
            fix = f"has no vectors for the model's {part}; use one made for it"
            raise BadInput("embedding", embedding.path, fix)
        if embedding.word in tokenizer.get_vocab():
            fix = (
                f"has the word {embedding.word}, which the model knows already; give it another as FILE:WORD"
            )
            raise BadInput("embedding", embedding.path, fix)
        if is_skeleton(encoder):
            # Another rank encodes; here the tokenizer tells which words of a prompt are dropped.
            tokenizer.add_tokens(_tokens(embedding.word, tensors[name]))
            continue
        with load_errors(refuse), quiet():
            pipeline.load_textual_inversion(
                tensors[name], token=embedding.word, tokenizer=tokenizer, text_encoder=encoder
            )


def _tokens(word: str, vectors: Tensor) -> list[str]:
    """The tokens of a learned word as diffusers names them, one for each vector."""
    count = len(vectors) if vectors.dim() > 1 else 1
    return [word, *(f"{word}_{number}" for number in range(1, count))]


def _restore(pipeline: Any) -> None:
    for part, (tokenizer, table) in _originals.pop(pipeline, {}).items():
        setattr(pipeline, _tokenizer_of(part), tokenizer)
        encoder = getattr(pipeline, part)
        words = encoder.get_input_embeddings()
        words.weight.data, words.num_embeddings = table, len(table)
        encoder.config.vocab_size = len(table)


def _encoders(pipeline: Any) -> Iterator[tuple[str, Any, Any]]:
    for part in ("text_encoder", "text_encoder_2"):
        encoder, tokenizer = getattr(pipeline, part, None), getattr(pipeline, _tokenizer_of(part), None)
        if encoder is not None and tokenizer is not None:
            yield part, tokenizer, encoder


def _tokenizer_of(part: str) -> str:
    return part.replace("text_encoder", "tokenizer")
