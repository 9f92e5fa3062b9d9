"""Styles, scripts and icons: browsers keep them for a year under an address with a part of their digest, and
what is text is sent packed."""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
import stat
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from starlette.datastructures import Headers, QueryParams
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

FOLDER = Path(__file__).parent / "static"
_TEXT = (".css", ".js", ".svg", ".txt")
_A_YEAR = "public, max-age=31536000, immutable"


@dataclass(frozen=True)
class Asset:
    """One file, as it was when it was asked for first."""

    path: Path

    @cached_property
    def data(self) -> bytes:
        return self.path.read_bytes()

    @cached_property
    def version(self) -> str:
        """A part of its digest."""
        return hashlib.sha256(self.data).hexdigest()[:16]

    @cached_property
    def packed(self) -> bytes | None:
        """By gzip; None for what is no text."""
        return gzip.compress(self.data, mtime=0) if self.path.suffix in _TEXT else None

    @cached_property
    def media_type(self) -> str:
        return mimetypes.guess_type(self.path.name)[0] or "application/octet-stream"


@cache
def _asset(name: str) -> Asset:
    return Asset(FOLDER / name)


def static_url(name: str) -> str:
    """The address of a file, which changes when the file does."""
    return f"/static/{name}?v={_asset(name).version}"


class StaticAssets(StaticFiles):
    """Serves them. Asked for without a version, or with an older one, they are not kept."""

    def __init__(self) -> None:
        super().__init__(directory=FOLDER)

    async def get_response(self, path: str, scope: Scope) -> Response:
        """The answer; raises `HTTPException` for anything that is no such file."""
        if scope["method"] not in ("GET", "HEAD"):
            raise HTTPException(405)
        found = self.lookup_path(path)[1]
        if found is None or not stat.S_ISREG(found.st_mode):
            raise HTTPException(404)
        asset, headers = _asset(path), Headers(scope=scope)
        asked = QueryParams(scope["query_string"]).get("v")
        answer = {
            "cache-control": _A_YEAR if asked == asset.version else "no-cache",
            "etag": f'"{asset.version}"',
            "vary": "accept-encoding",
        }
        if answer["etag"] in headers.get("if-none-match", ""):
            return Response(status_code=304, headers=answer)
        data = asset.data
        if asset.packed is not None and "gzip" in headers.get("accept-encoding", ""):
            data, answer["content-encoding"] = asset.packed, "gzip"
        return Response(data, headers=answer, media_type=asset.media_type)
