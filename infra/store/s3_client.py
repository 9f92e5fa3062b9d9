"""Options of S3 from the settings, and boto3's client for them."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from infra.errors import BadSetting, StoreUnusable
from infra.settings import Settings

CONNECTIONS = 16
"""Per client: a rank's uploads, its checkpoint and its block journal run at once."""
_CONNECT_S, _READ_S = 5, 30
_CHOICES = {
    "s3_checksums": ("when_supported", "when_required"),
    "s3_addressing": ("auto", "path", "virtual"),
    "s3_conditional_writes": ("yes", "no"),
}
_making = threading.Lock()
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


@dataclass(frozen=True, kw_only=True)
class S3Options:
    """Everything that decides how a client behaves. Credentials are left to boto3."""

    endpoint_url: str | None = None
    region: str | None = None
    ca_bundle: str | None = None
    checksums: str = "when_supported"
    addressing: str = "auto"
    conditional_writes: bool = True
    tries: int = 2
    """Per call, by boto3 itself."""

    @classmethod
    def from_settings(cls, settings: Settings, tries: int) -> S3Options:
        """Raises `BadSetting`."""
        chosen = {name: _choice(settings, name) for name in _CHOICES}
        return cls(
            endpoint_url=_endpoint(settings.s3_endpoint_url),
            region=settings.s3_region or None,
            ca_bundle=_file(settings.s3_ca_bundle),
            checksums=chosen["s3_checksums"],
            addressing=chosen["s3_addressing"],
            conditional_writes=chosen["s3_conditional_writes"] == "yes",
            tries=tries,
        )


def _choice(settings: Settings, name: str) -> str:
    value: str = getattr(settings, name) or _CHOICES[name][0]
    if value not in _CHOICES[name]:
        raise BadSetting(name, value, f"is unknown; use one of {', '.join(_CHOICES[name])}")
    return value


def _file(path: str) -> str | None:
    if path and not Path(path).is_file():
        raise BadSetting("s3_ca_bundle", path, "is not a file; use a PEM file of certificates")
    return path or None


def _endpoint(url: str) -> str | None:
    if not url:
        return None
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fits = False
    if "@" in url:
        raise BadSetting("s3_endpoint_url", "(hidden)", "contains credentials; set AWS_ACCESS_KEY_ID instead")
    if not fits:
        raise BadSetting("s3_endpoint_url", url, "is not a valid endpoint; use e.g. https://s3.example.com")
    return url


def split_s3_url(url: str, field: str) -> tuple[str, str]:
    """(bucket, prefix without slashes at its ends) of s3://bucket/prefix; raises `BadSetting`."""
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    if "@" in bucket or ":" in bucket:
        raise BadSetting(
            field, "s3://(hidden)", "contains more than a bucket name; set credentials in AWS_ACCESS_KEY_ID"
        )
    if not _BUCKET.fullmatch(bucket) or ".." in bucket:
        raise BadSetting(
            field, url, "has an invalid bucket name; use s3://bucket/prefix, 3 to 63 of a-z 0-9 . -"
        )
    prefix = prefix.strip("/")
    parts = prefix.split("/") if prefix else []
    if any(part in ("", ".", "..") for part in parts) or re.search(r"[?#\x00-\x1f\\]", prefix):
        raise BadSetting(field, url, "has an invalid prefix; use names separated by single slashes")
    if len(prefix.encode()) > 700:
        raise BadSetting(field, f"{url[:60]}...", "has a prefix longer than 700 bytes; use a shorter one")
    return bucket, prefix


def make_client(options: S3Options) -> Any:
    """boto3's client: thread-safe, with pooled connections. Raises `StoreUnusable`."""
    # One at a time: creating a client takes most of a second, and all uploads begin at once.
    with _making:
        return _made_client(options)


@lru_cache(maxsize=8)
def _made_client(options: S3Options) -> Any:
    import boto3
    from botocore.config import Config

    from infra.store.s3_errors import translated

    config = Config(
        connect_timeout=_CONNECT_S,
        read_timeout=_READ_S,
        tcp_keepalive=True,
        max_pool_connections=CONNECTIONS,
        retries={"mode": "standard", "total_max_attempts": options.tries},
        s3={"addressing_style": options.addressing},
        request_checksum_calculation=options.checksums,
        response_checksum_validation=options.checksums,
        user_agent_extra="chorale",
    )
    with translated("s3"):
        try:
            return boto3.session.Session().client(
                "s3",
                endpoint_url=options.endpoint_url,
                region_name=options.region,
                verify=options.ca_bundle,
                config=config,
            )
        except (ValueError, OSError) as exc:
            raise StoreUnusable(f"s3: {exc}; check the CHORALE_S3_ settings") from exc


def forget_clients() -> None:
    """For tests: the next client reads the credentials again."""
    _made_client.cache_clear()
