"""The spec: everything that decides the pixels of an image. Importing this package imports no torch."""

from __future__ import annotations

from render.spec.spec import (
    ATTENTION_FORMS,
    BLENDS,
    DIGEST_VERSION,
    DTYPES,
    FORMATS,
    LEARNED,
    POOLED,
    SAMPLERS,
    SHAPE_TOLERANCE,
    WRAPS,
    Spec,
    beside,
    parse_size,
    read_spec_file,
)

__all__ = [
    "ATTENTION_FORMS",
    "BLENDS",
    "DIGEST_VERSION",
    "DTYPES",
    "FORMATS",
    "LEARNED",
    "POOLED",
    "SAMPLERS",
    "SHAPE_TOLERANCE",
    "WRAPS",
    "Spec",
    "beside",
    "parse_size",
    "read_spec_file",
]
