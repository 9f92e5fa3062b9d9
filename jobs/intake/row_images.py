"""Images that rows name: files beside the batch, http(s) URLs of allowed hosts, and objects of S3.

A URL is downloaded once per batch, into a temporary folder that lives until its image is in the farm's store.
A listed name that leads into a private network is refused unless that network is listed, too.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from infra.allowed_hosts import AllowedHosts
from infra.errors import SettingError, StoreError
from infra.settings import Settings
from infra.store.open import open_store
from jobs.intake.named_files import Find, replace_names
from render.errors import BadInput
from render.spec import IMAGE_FIELDS

_TIMEOUT_S = 30.0
_MAX_REDIRECTS = 5
_CHUNK_BYTES = 1 << 20


class RowImages:
    """Finds the images of the rows of one batch. Close it once they are in the farm's store.

    `folder` is where names of files begin, for a batch of this machine; `sent` finds files that came with a
    batch from another one, by field and name.
    """

    def __init__(self, settings: Settings, folder: Path | None, sent: Find | None = None) -> None:
        self._settings, self._folder, self._sent = settings, folder, sent
        self._hosts = AllowedHosts(settings.image_hosts)
        self._limit = int(settings.image_max_mib * (1 << 20))
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._known: dict[str, Path] = {}
        self._http: Any = None

    @property
    def names_files(self) -> bool:
        """Whether rows may name files of this machine."""
        return self._folder is not None

    def local(self, field: str, name: str) -> str:
        """The path of an image on this machine, downloaded where it is a URL. Raises `BadInput`.

        Paths are relative to the batch file; a batch from elsewhere may name URLs only.
        """
        scheme = name.partition("://")[0].lower() if "://" in name else ""
        if not scheme:
            if self._sent is not None and (found := self._sent(field, name)) is not None:
                return found
            if self._folder is None:
                raise BadInput(field, name, "is a file of another machine; use chorale submit, or a URL")
            return str(self._folder / name)
        if scheme not in ("http", "https", "s3"):
            raise BadInput(field, name[:200], "has an unknown scheme; use a path, https:// or s3://")
        if name not in self._known:
            data = self._from_s3(field, name) if scheme == "s3" else self._from_http(field, name)
            self._known[name] = self._keep(name, data)
        return str(self._known[name])

    def replaced(self, field: str, value: Any) -> Any:
        """A value with paths in place of the names of files that came with the batch. Raises `BadInput`."""

        def find(of: str, name: str) -> str | None:
            if of in IMAGE_FIELDS:
                return self.local(of, name)
            return None if self._sent is None else self._sent(of, name)

        problem = "is a file of another machine, which did not come with the batch; use chorale submit"
        return replace_names(field, value, find, problem)

    def close(self) -> None:
        """Close connections and remove what was downloaded."""
        if self._http is not None:
            self._http.clear()
        if self._temporary is not None:
            self._temporary.cleanup()

    def _keep(self, name: str, data: bytes) -> Path:
        if self._temporary is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="chorale-images-")
        path = Path(self._temporary.name) / hashlib.sha256(name.encode()).hexdigest()[:32]
        path.write_bytes(data)
        return path

    def _from_s3(self, field: str, name: str) -> bytes:
        bucket, _, key = name[5:].partition("/")
        if self._folder is None and not self._hosts.names(f"s3://{bucket.lower()}"):
            raise BadInput(field, name[:200], f"is in a bucket that is not allowed; {_ALLOW}")
        try:
            store = open_store(f"s3://{bucket}", self._settings, field=field)
            size = store.size(key)
            if size is None:
                raise BadInput(field, name[:200], "is not there; check the bucket and the key")
            self._check_size(field, name, size)
            return store.get(key)
        except (StoreError, SettingError) as exc:
            raise BadInput(field, name[:200], f"cannot be read ({exc})") from exc

    def _from_http(self, field: str, name: str) -> bytes:
        # Not at module level: every command would pay for the import.
        import urllib3

        from infra.guarded_http import ForbiddenAddress, guarded_pool

        if self._http is None:
            retries = urllib3.Retry(connect=2, read=2, redirect=False, status=0)
            self._http = guarded_pool(self._hosts.may_connect, timeout=_TIMEOUT_S, retries=retries)
        url = name
        for _ in range(_MAX_REDIRECTS):
            self._check_host(field, name, url)
            try:
                answer = self._http.request("GET", url, preload_content=False, redirect=False)
                with answer:
                    if answer.status in (301, 302, 303, 307, 308):
                        url = urljoin(url, answer.headers.get("location", ""))
                        continue
                    if answer.status != 200:
                        raise BadInput(
                            field, name[:200], f"answers with status {answer.status}; check the URL"
                        )
                    return self._read(field, name, answer)
            except ForbiddenAddress as exc:
                raise BadInput(
                    field, name[:200], f"is on {exc}, in a private network; {_ALLOW_NETWORK}"
                ) from exc
            except (urllib3.exceptions.HTTPError, ValueError) as exc:
                reason = str(getattr(exc, "reason", None) or exc)[:120]
                raise BadInput(field, name[:200], f"cannot be downloaded ({reason})") from exc
        raise BadInput(field, name[:200], "redirects too often; give the URL of the image itself")

    def _check_host(self, field: str, name: str, url: str) -> None:
        """Each step of a redirect has to be allowed, too."""
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").lower(), parts.port
        except ValueError as exc:
            raise BadInput(field, name[:200], "is not a URL; use e.g. https://cdn.example.com/a.jpg") from exc
        if parts.scheme not in ("http", "https") or not host:
            raise BadInput(field, name[:200], "does not lead to an http or https URL; give the image's own")
        named = f"{host}:{port}" if port else host
        if not self._hosts.names(named):
            raise BadInput(field, name[:200], f"is on {named}, which is not allowed; {_ALLOW}")

    def _read(self, field: str, name: str, answer: Any) -> bytes:
        length = answer.headers.get("content-length", "")
        if length.isascii() and length.isdigit():
            self._check_size(field, name, int(length[:18]))
        found = bytearray()
        # Also what is packed, and what tells no length, ends at the limit.
        while chunk := answer.read(_CHUNK_BYTES, decode_content=True):
            found += chunk
            self._check_size(field, name, len(found))
        return bytes(found)

    def _check_size(self, field: str, name: str, size: int) -> None:
        if size > self._limit:
            limit = f"CHORALE_IMAGE_MAX_MIB, {self._settings.image_max_mib:g}"
            raise BadInput(field, name[:200], f"is larger than {limit}; use a smaller one")


_ALLOW = "name it in CHORALE_IMAGE_HOSTS, e.g. cdn.example.com,*.shop.example"
_ALLOW_NETWORK = "if that is meant, name its network in CHORALE_IMAGE_HOSTS too, e.g. 10.2.0.0/16"
