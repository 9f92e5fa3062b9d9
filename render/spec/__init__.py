"""The spec: everything that decides the pixels of an image. Importing this package imports no torch."""

from __future__ import annotations

from render.spec.cutout import CUTOUT
from render.spec.fields import SpecField
from render.spec.files import (
    IMAGE_FIELDS,
    PARTS_OF_FILES,
    beside,
    expand_size,
    load_yaml,
    names_image,
    parse_size,
    read_spec_file,
)
from render.spec.spec import (
    ATTENTION_FORMS,
    AUTO,
    BLENDS,
    COMPOSITE,
    DIGEST_VERSION,
    DTYPES,
    FORMATS,
    GROUPS,
    LEARNED,
    NO_QUANTIZATION,
    POOLED,
    QUANTIZATIONS,
    SAMPLERS,
    TRAINED,
    WRAPS,
    Spec,
)

__all__ = [
    "ATTENTION_FORMS",
    "AUTO",
    "BLENDS",
    "COMPOSITE",
    "CUTOUT",
    "DIGEST_VERSION",
    "DTYPES",
    "FORMATS",
    "GROUPS",
    "IMAGE_FIELDS",
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
    "names_image",
    "parse_size",
    "read_spec_file",
]
