"""Addresses of thumbnails for people who have no token, as chat programs fetch them for their messages."""

from __future__ import annotations

import hashlib

from itsdangerous import BadSignature, TimestampSigner

VALID_S = 30 * 86_400


def thumbnail_link(board: str, secret: bytes, job: str) -> str:
    """The address of a job's thumbnail on the board at `board`; `secret` is that of the farm's boards."""
    return f"{board}/thumbnails/{_signer(secret).sign(job).decode()}.jpg"


def job_of_thumbnail(secret: bytes, signed: str) -> str | None:
    """The job that was signed within the last month, or None."""
    try:
        return _signer(secret).unsign(signed, max_age=VALID_S).decode()
    except (BadSignature, UnicodeDecodeError):
        return None


def _signer(secret: bytes) -> TimestampSigner:
    return TimestampSigner(secret, salt="thumbnail", key_derivation="hmac", digest_method=hashlib.sha256)
