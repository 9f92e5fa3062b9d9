"""Pixels to PNG, WebP and JPEG files that declare their origin.

Every file is marked sRGB and carries XMP whose DigitalSourceType declares that a trained model made it
(IPTC's term `trainedAlgorithmicMedia`), or that it made it from a picture
(`compositeWithTrainedAlgorithmicMedia`). Files that are used without the pyramid also carry the parameters of
their generation, and the prompts if wanted.
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
from numpy.typing import NDArray
from PIL import Image, ImageCms, PngImagePlugin

from render.spec import COMPOSITE, TRAINED

Pixels = NDArray[np.uint8]
"""[h, w, 3] sRGB."""

ENDINGS = {"png": "png", "webp": "webp", "jpeg": "jpg"}
CONTENT_TYPES = {"png": "image/png", "webp": "image/webp", "jpeg": "image/jpeg"}
_PNG_LEVEL = 4
"""zlib's level: twice as fast as the default for a few percent of size."""
_SOURCES = {
    TRAINED: "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia",
    COMPOSITE: "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia",
}
_PROMPTS = ("prompt", "negative_prompt")


def encode(
    pixels: Pixels,
    form: str,
    quality: int,
    parameters: str | None = None,
    *,
    source_type: str = TRAINED,
    lossless: bool = False,
) -> bytes:
    """[h, w, 3] pixels as one file of format `form`; `quality` counts for WebP, unless `lossless`, and JPEG.

    `parameters` is the JSON text of `published_parameters`, `source_type` one of the spec's.
    """
    image, out = Image.fromarray(pixels), io.BytesIO()
    options = _options(form, quality, parameters, source_type)
    image.save(out, form.upper(), **options, **({"lossless": True} if lossless and form == "webp" else {}))
    return out.getvalue()


def published_parameters(values: Mapping[str, Any], *, prompt: bool) -> str:
    """The JSON text of a spec's values as a file carries it: without paths, and without prompts unless
    `prompt`."""
    shown = {name: value for name, value in values.items() if prompt or name not in _PROMPTS}
    if not prompt and shown.get("boxes"):
        shown["boxes"] = [
            {name: value for name, value in box.items() if name != "prompt"} for box in shown["boxes"]
        ]
    for name in ("init", "mask"):
        if isinstance(shown.get(name), Mapping):
            shown[name] = {key: value for key, value in shown[name].items() if key != "path"}
    for name in ("control", "controlnet"):
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
        f"<Iptc4xmpExt:DigitalSourceType>{_SOURCES[source_type]}</Iptc4xmpExt:DigitalSourceType>{description}"
        '</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
    ).encode()


@lru_cache(maxsize=1)
def srgb_profile() -> bytes:
    """An sRGB profile with a fixed date: the library writes the current one, and bytes must not vary."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    date = b"".join(part.to_bytes(2, "big") for part in (2026, 1, 1, 0, 0, 0))
    return profile[:24] + date + profile[36:]


def _options(form: str, quality: int, parameters: str | None, source_type: str) -> dict[str, Any]:
    if form == "png":
        info = PngImagePlugin.PngInfo()
        info.add(b"sRGB", b"\0")
        info.add_itxt("XML:com.adobe.xmp", xmp(None, source_type).decode())
        if parameters:
            info.add_itxt("parameters", parameters)
        return {"pnginfo": info, "compress_level": _PNG_LEVEL}
    options = {"xmp": xmp(parameters, source_type), "icc_profile": srgb_profile(), "quality": quality}
    return options | ({"method": 4} if form == "webp" else {"subsampling": 0, "optimize": False})
