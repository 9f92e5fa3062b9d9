"""Pixels to PNG, WebP, JPEG and TIFF files that declare their origin.

Every file is marked sRGB, or Display P3 where that is asked for. It carries XMP whose DigitalSourceType
declares that a trained model made it (IPTC's term `trainedAlgorithmicMedia`), or that it made it from a
picture (`compositeWithTrainedAlgorithmicMedia`). Files that are used without the pyramid also carry the
parameters of their generation, and the prompts if wanted.
The bytes are a function of pixels and spec: they hold no time and no host.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

from render.output.pixels import Pixels
from render.spec import AUTO_PROFILE, COMPOSITE, DISPLAY_P3, FILE_FIELDS, TRAINED
from render.spec.image_pixels import vips

ENDINGS = {"png": "png", "webp": "webp", "jpeg": "jpg", "tiff": "tif"}
CONTENT_TYPES = {"png": "image/png", "webp": "image/webp", "jpeg": "image/jpeg", "tiff": "image/tiff"}
_PNG_LEVEL = 4
"""zlib's level: twice as fast as the default for a few percent of size."""
_SPACES = {1: "srgb", 2: "rgb16"}
"""libvips's color space of sRGB, by bytes of a number."""
SRGB_TO_P3 = [
    [0.8224619687, 0.1775380313, 0.0],
    [0.0331941989, 0.9668058011, 0.0],
    [0.0170826307, 0.0723974407, 0.9105199286],
]
P3_TO_SRGB = [
    [1.2249401763, -0.2249401763, 0.0],
    [-0.0420569547, 1.0420569547, 0.0],
    [-0.0196375546, -0.0786360456, 1.0982736000],
]
"""Between linear light of both color spaces, whose white is the same (SMPTE EG 432-1, IEC 61966-2-1)."""
SOURCE_TYPES = {
    TRAINED: "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia",
    COMPOSITE: "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia",
}
"""IPTC's terms for the spec's source types."""
_PROMPTS = ("prompt", "negative_prompt")


def encode(
    pixels: Pixels,
    form: str,
    quality: int,
    parameters: str | None = None,
    *,
    source_type: str = TRAINED,
    lossless: bool = False,
    icc: str = AUTO_PROFILE,
) -> bytes:
    """[h, w, 3 or 4] pixels as one file of format `form`; `quality` counts for WebP, unless `lossless`, and
    JPEG. 16 bits go with PNG and TIFF, transparency with all but JPEG.

    `parameters` is the JSON text of `published_parameters`; `source_type` and `icc` are the spec's.
    """
    if icc == DISPLAY_P3:
        pixels = _in_display_p3(pixels)
    if form == "tiff" or pixels.dtype == np.uint16:
        return _encoded_by_vips(pixels, form, xmp(parameters, source_type), profile(icc))
    image, out = Image.fromarray(pixels), io.BytesIO()
    options = _options(form, quality, parameters, source_type, icc)
    if form == "webp" and lossless:
        # Exact: colors stay where nothing is seen of them.
        options |= {"lossless": True} | ({"exact": True} if pixels.shape[2] == 4 else {})
    image.save(out, form.upper(), **options)
    return out.getvalue()


def published_parameters(values: Mapping[str, Any], *, prompt: bool) -> str:
    """The JSON text of a spec's values as a file carries it: without paths, and without prompts unless
    `prompt`."""
    shown = {name: value for name, value in values.items() if prompt or name not in _PROMPTS}
    if not prompt and shown.get("boxes"):
        shown["boxes"] = [
            {name: value for name, value in box.items() if name != "prompt"} for box in shown["boxes"]
        ]
    for name in FILE_FIELDS:
        if isinstance(shown.get(name), Mapping):
            shown[name] = {key: value for key, value in shown[name].items() if key != "path"}
    for name in ("control", "controlnet", "reference"):
        if shown.get(name):
            shown[name] = [
                {key: value for key, value in part.items() if key != "path"} for part in shown[name]
            ]
    return json.dumps(shown, sort_keys=True, ensure_ascii=False)


def xmp(parameters: str | None = None, source_type: str = TRAINED) -> bytes:
    """The XMP packet; `parameters` is JSON text, see `published_parameters`."""
    description = f"<dc:description>{escape(parameters)}</dc:description>" if parameters else ""
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
        'xmlns:dc="http://purl.org/dc/elements/1.1/" '
        'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">'
        f"<Iptc4xmpExt:DigitalSourceType>{SOURCE_TYPES[source_type]}</Iptc4xmpExt:DigitalSourceType>{description}"
        '</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
    ).encode()


@lru_cache(maxsize=1)
def srgb_profile() -> bytes:
    """An sRGB profile with a fixed date: the library writes the current one, and bytes must not vary."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    date = b"".join(part.to_bytes(2, "big") for part in (2026, 1, 1, 0, 0, 0))
    return profile[:24] + date + profile[36:]


def profile(icc: str) -> bytes:
    """The ICC profile of a spec's `icc`."""
    return bytes(vips().Image.profile_load("p3")) if icc == DISPLAY_P3 else srgb_profile()


def _in_display_p3(pixels: Pixels) -> Pixels:
    """sRGB pixels -> the same colors in Display P3."""
    data = in_primaries(_vips_image(pixels[..., :3]), SRGB_TO_P3).write_to_memory()
    colors = np.frombuffer(data, pixels.dtype).reshape(*pixels.shape[:2], 3)
    return np.concatenate([colors, pixels[..., 3:]], axis=2)


def in_primaries(image: Any, matrix: list[list[float]]) -> Any:
    """A `pyvips.Image` of three bands in another color space with sRGB's curve, each pixel by itself: more
    exact than a transform by profiles, whose tables are coarse where it is dark."""
    changed = image.colourspace("scrgb").recomb(matrix)
    return changed.colourspace(image.interpretation).cast(image.format)


def _encoded_by_vips(pixels: Pixels, form: str, packet: bytes, icc_profile: bytes) -> bytes:
    """PNG or TIFF; Pillow writes no colors of 16 bits."""
    image, blob = _vips_image(pixels), vips().GValue.blob_type
    image.set_type(blob, "xmp-data", packet)
    image.set_type(blob, "icc-profile-data", icc_profile)
    if form == "png":
        return bytes(image.pngsave_buffer(compression=_PNG_LEVEL, bitdepth=8 * pixels.itemsize))
    return bytes(image.tiffsave_buffer(compression="deflate", predictor="horizontal"))


def _vips_image(pixels: Pixels) -> Any:
    height, width, bands = pixels.shape
    kind = "uchar" if pixels.itemsize == 1 else "ushort"
    image = vips().Image.new_from_memory(np.ascontiguousarray(pixels).data, width, height, bands, kind)
    return image.copy(interpretation=_SPACES[pixels.itemsize])


def _options(form: str, quality: int, parameters: str | None, source_type: str, icc: str) -> dict[str, Any]:
    if form == "png":
        info = PngImagePlugin.PngInfo()
        if icc == AUTO_PROFILE:
            info.add(b"sRGB", b"\0")
        info.add_itxt("XML:com.adobe.xmp", xmp(None, source_type).decode())
        if parameters:
            info.add_itxt("parameters", parameters)
        carried = {} if icc == AUTO_PROFILE else {"icc_profile": profile(icc)}
        return {"pnginfo": info, "compress_level": _PNG_LEVEL, **carried}
    options = {"xmp": xmp(parameters, source_type), "icc_profile": profile(icc), "quality": quality}
    return options | ({"method": 4} if form == "webp" else {"subsampling": 0, "optimize": False})
