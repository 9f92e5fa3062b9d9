"""The spec: everything that decides the pixels of an image. Importing this package imports no torch."""

from __future__ import annotations

from render.spec.choices import (
    ATTENTION_FORMS,
    AUTO,
    AUTO_PROFILE,
    BLENDS,
    COMPOSITE,
    DISPLAY_P3,
    DTYPES,
    FORMATS,
    GROUPS,
    KEEP_ALPHA,
    LEARNED,
    NO_QUANTIZATION,
    POOLED,
    QUANTIZATIONS,
    SAMPLERS,
    TRAINED,
    WRAPS,
)
from render.spec.cutout import CUTOUT
from render.spec.fields import SpecField
from render.spec.files import (
    FILE_FIELDS,
    IMAGE_FIELDS,
    PARTS_OF_FILES,
    beside,
    expand_size,
    load_yaml,
    names_file,
    parse_size,
    read_spec_file,
)
from render.spec.spec import DIGEST_VERSION, Spec

__all__ = [
    "ATTENTION_FORMS",
    "AUTO",
    "AUTO_PROFILE",
    "BLENDS",
    "COMPOSITE",
    "CUTOUT",
    "DIGEST_VERSION",
    "DISPLAY_P3",
    "DTYPES",
    "FILE_FIELDS",
    "FORMATS",
    "GROUPS",
    "IMAGE_FIELDS",
    "KEEP_ALPHA",
    "LEARNED",
    "NO_QUANTIZATION",
    "PARTS_OF_FILES",
    "POOLED",
    "QUANTIZATIONS",
    "SAMPLERS",
    "TRAINED",
    "WRAPS",
    "Spec",
    "SpecField",
    "beside",
    "expand_size",
    "load_yaml",
    "names_file",
    "parse_size",
    "read_spec_file",
]
