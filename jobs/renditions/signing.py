"""Signs files with the user's certificate, as C2PA (Content Credentials) describes.

A signature changes no pixel. It holds the time and a random number, so that the bytes of a signed file differ
from one making to the next; the decoded pixels do not.
"""

from __future__ import annotations

import io
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from infra.errors import BadSetting, ServiceError
from infra.settings import Settings
from infra.store.parts import part_of
from jobs.renditions.claim import AGENT
from jobs.renditions.credentials import Credentials, read_credentials
from render.errors import RenderFailed
from render.output.encode import SOURCE_TYPES
from render.spec import TRAINED

SIDECAR = ".c2pa"
"""Ending of the file beside an image whose format cannot hold its own claim."""
_TRIAL_SIDE = 16
_CREATED = {"action": "c2pa.created", "digitalSourceType": SOURCE_TYPES[TRAINED]}
_TRIAL = {
    "claim_generator_info": [{"name": AGENT}],
    "format": "image/png",
    "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [_CREATED]}}],
}
_SETTINGS = {
    # A thumbnail would be a second picture, and nothing of a file is fetched from elsewhere.
    "builder": {"thumbnail": {"enabled": False}},
    "verify": {"verify_after_sign": True, "remote_manifest_fetch": False, "ocsp_fetch": False},
}


class TimestampUnavailable(ServiceError):
    """The time-stamp authority gives no time stamp."""


@dataclass(frozen=True, kw_only=True)
class Signer:
    """Signs with one certificate. It holds no file and no connection."""

    credentials: Credentials

    def signed(self, data: bytes, format: str, claim: dict[str, Any]) -> bytes:
        """A file with its claim and signature. `format` is its MIME type.

        Raises `BadSetting` for a certificate that has expired or may not sign, `TimestampUnavailable`.
        """
        out = io.BytesIO()
        self._sign(claim, format, io.BytesIO(data), out, embed=True)
        return out.getvalue()

    def sign_file(self, file: Path, format: str, claim: dict[str, Any], *, embed: bool) -> bytes:
        """Sign a file in its place, and return the signed claim. Without `embed` the file stays as it is, and
        the claim is to lie beside it.

        Raises as `signed` does, and `OSError`.
        """
        signed = part_of(file)
        try:
            with file.open("rb") as source, signed.open("w+b") as out:
                claimed = self._sign(claim, format, source, out, embed=embed)
            if embed:
                os.replace(signed, file)
            return claimed
        finally:
            signed.unlink(missing_ok=True)

    def _sign(self, claim: dict[str, Any], format: str, source: Any, out: Any, *, embed: bool) -> bytes:
        import c2pa

        self.credentials.check_dates()
        try:
            with (
                c2pa.Context.from_dict(_SETTINGS) as context,
                c2pa.Signer.from_info(self._info()) as signer,
                c2pa.Builder(json.dumps(claim), context) as builder,
            ):
                if not embed:
                    builder.set_no_embed()
                return bytes(builder.sign(signer, format, source, out))
        except c2pa.C2paError as exc:
            raise self._translated(exc) from exc

    def _info(self) -> Any:
        import c2pa

        mine = self.credentials
        url = mine.timestamp_url.encode() or None
        return c2pa.C2paSignerInfo(mine.algorithm.encode(), mine.chain_pem, mine.key, url)

    def _translated(self, exc: Exception) -> Exception:
        text = " ".join(str(exc).split())[:200]
        url = self.credentials.timestamp_url
        if url and any(word in text.lower() for word in ("time", "http", "request")):
            return TimestampUnavailable(f"{url}: no time stamp ({text}); try again, or use another authority")
        if any(word in text.lower() for word in ("certificate", "cose", "signing", "key")):
            problem = f"cannot sign files for C2PA ({text}); use one that is issued for signing documents"
            return BadSetting("c2pa_certificate", self.credentials.path, problem)
        return RenderFailed(f"the file could not be signed ({text}); nothing was written")


def open_signer(settings: Settings) -> Signer | None:
    """The signer of the settings; None where they name no certificate. Raises `BadSetting`."""
    found = read_credentials(settings)
    if found is None:
        return None
    try:
        import c2pa  # noqa: F401
    except ImportError as exc:
        fix = "needs the package c2pa-python; pip install 'chorale[c2pa]'"
        raise BadSetting("c2pa_certificate", found.path, fix) from exc
    return Signer(credentials=found)


def check_signer(settings: Settings) -> Signer | None:
    """The same, tried on a small picture, so that a certificate which may not sign is told before any work.

    Nothing is sent to the time-stamp authority yet.
    """
    signer = open_signer(settings)
    if signer is not None:
        trial = Signer(credentials=replace(signer.credentials, timestamp_url=""))
        picture = io.BytesIO()
        Image.new("RGB", (_TRIAL_SIDE, _TRIAL_SIDE)).save(picture, "PNG")
        trial.signed(picture.getvalue(), "image/png", _TRIAL)
    return signer
