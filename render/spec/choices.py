"""The values that fields of the spec are chosen from."""

from __future__ import annotations

SAMPLERS = ("euler", "euler-ancestral", "ddim", "dpmpp-2m", "lcm")
BLENDS = ("overlap", "shift")
WRAPS = ("none", "x", "y", "xy")
AUTO = "auto"
DTYPES = ("float32", "bfloat16", "float16")
NO_QUANTIZATION = "none"
QUANTIZATIONS = (NO_QUANTIZATION, "int8", "fp8", "nf4")
POOLED, LEARNED = ATTENTION_FORMS = ("pooled", "learned")
FORMATS = {"png": 2**31 - 1, "webp": 16_383, "jpeg": 65_500, "tiff": 2**31 - 1}
"""Output formats and the longest side in pixels that each can hold as one exported file."""
LOSSLESS = ("png", "tiff")
"""Those that hold 16 bits."""
BIT_DEPTHS = (8, 16)
NO_ALPHA, KEEP_ALPHA = ALPHAS = ("none", "keep")
AUTO_PROFILE, SRGB, DISPLAY_P3 = PROFILES = ("auto", "srgb", "p3")
TILE_SIZES = (64, 128, 256, 512, 1024, 2048)
NO_MASK = "none"
"""In place of a mask: not even the init image's own transparency is one."""
TRAINED, COMPOSITE = SOURCE_TYPES = ("trained", "composite")
IMAGE, COMPOSITION, MODEL, STAGES, OUTPUT = "Image", "Composition", "Model", "Stages and windows", "Output"
GROUPS = (IMAGE, COMPOSITION, MODEL, STAGES, OUTPUT)
"""In the order in which a form and a table show them; the first one is what most people set."""
