"""Number formats of stored weights: those that a folder's configuration does not announce are refused.

Libraries convert whatever they find to the format that is asked for. Weights in integers, or in float8 beside
their scales, then load without an error and render noise. No torch.
"""

from __future__ import annotations

from pathlib import Path

from render.gguf_file import is_gguf
from render.models.config_files import unusable
from render.models.weights import weight_files
from render.safetensors_file import read_header

_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
_OF_QUANTIZERS = (
    *(".weight_scale", ".scale_weight", ".weight_scale_inv", ".weight_scale_2"),
    *(".qweight", ".qzeros", ".weight_packed", ".SCB", ".absmax", ".quant_map"),
)
"""How the names of tensors end that quantizers write beside weights, or in place of them."""


def check_formats(path: Path, part: str) -> None:
    """Raise `ModelNotUsable` for a part of a folder whose weights were quantized without being announced."""
    for file in weight_files(path / part):
        if is_gguf(file):
            continue
        for name, tensor in read_header(file).items():
            if name.endswith(".weight") and tensor["dtype"] not in _FLOATS:
                what = f"in {tensor['dtype']} ({name})"
            elif name.endswith(_OF_QUANTIZERS):
                what = f"of a quantizer ({name})"
            else:
                continue
            raise unusable(
                path,
                f"has weights {what} in {part}/ and no quantization_config, and would render noise; use the "
                "model as it was published, with --quantize",
            )
