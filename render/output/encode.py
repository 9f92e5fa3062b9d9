"""Pixels to PNG, WebP and JPEG files that declare their origin.

Every file is marked sRGB and carries XMP whose DigitalSourceType declares that a trained model made it
(IPTC's term `trainedAlgorithmicMedia`). Files that are used without the pyramid also carry the parameters of
their generation. The bytes are a function of pixels and spec: they hold no time and no host.
"""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, PngImagePlugin

Pixels = NDArray[np.uint8]
"""[h, w, 3] sRGB."""

ENDINGS = {"png": "png", "webp": "webp", "jpeg": "jpg"}
CONTENT_TYPES = {"png": "image/png", "webp": "image/webp", "jpeg": "image/jpeg"}
_PNG_LEVEL = 4
"""zlib's level: twice as fast as the default for a few percent of size."""
_SOURCE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


def encode(pixels: Pixels, form: str, quality: int, parameters: str | None = None) -> bytes:
    """[h, w, 3] pixels as one file of format `form`; `quality` counts for WebP and JPEG.

    `parameters` is the JSON text of the spec.
    """
    image, out = Image.fromarray(pixels), io.BytesIO()
    image.save(out, form.upper(), **_options(form, quality, parameters))
    return out.getvalue()


def xmp(parameters: str | None = None) -> bytes:
    """The XMP packet; `parameters` is the JSON text of the spec."""
    description = f"<dc:description>{escape(parameters)}</dc:description>" if parameters else ""
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
        'xmlns:dc="http://purl.org/dc/elements/1.1/" '
        'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">'
        f"<Iptc4xmpExt:DigitalSourceType>{_SOURCE}</Iptc4xmpExt:DigitalSourceType>{description}"
        '</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
    ).encode()


@lru_cache(maxsize=1)
def srgb_profile() -> bytes:
    """An sRGB profile with a fixed date: the library writes the current one, and bytes must not vary."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    date = b"".join(part.to_bytes(2, "big") for part in (2026, 1, 1, 0, 0, 0))
    return profile[:24] + date + profile[36:]


def _options(form: str, quality: int, parameters: str | None) -> dict[str, Any]:
    if form == "png":
        info = PngImagePlugin.PngInfo()
        info.add(b"sRGB", b"\0")
        info.add_itxt("XML:com.adobe.xmp", xmp(None).decode())
        if parameters:
            info.add_itxt("parameters", parameters)
        return {"pnginfo": info, "compress_level": _PNG_LEVEL}
    options = {"xmp": xmp(parameters), "icc_profile": srgb_profile(), "quality": quality}
    return options | ({"method": 4} if form == "webp" else {"subsampling": 0, "optimize": False})
