"""What every request passes before anything else sees it: host, origin, size, and who asks.

Plain ASGI, since it also stands before every tile.
"""

from __future__ import annotations

from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from urllib.parse import quote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobs.board.access import COOKIE, SESSION_S, Access, Role, Session, is_loopback

LARGEST_BODY = 1 << 20
LARGEST_UPLOAD = 16 << 20
"""Bytes of a request; a batch file comes as an upload."""
_UPLOADS = ("/submit/batch",)
_TOO_LARGE = "the request is too large"
_SAFE = ("GET", "HEAD", "OPTIONS")
_PUBLIC = ("/healthz", "/login", "/static/")
_OPENSEADRAGON = "'sha256-9xTiqzfwFaL2SGb1rmr8gysEwVVjIvqWAgmZgqFqpEE='"
"""The one rule that the vendored viewer writes into the page: no outline where there is only touch."""
_POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": f"'self' {_OPENSEADRAGON}",
    "img-src": "'self' blob: data:",
    "connect-src": "'self'",
    "form-action": "'self'",
    "base-uri": "'none'",
    "frame-ancestors": "'none'",
}
_HEADERS = {
    "content-security-policy": "; ".join(f"{name} {value}" for name, value in _POLICY.items()),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


@dataclass
class Middleware:
    """Wraps the board. `state.role` and `state.session` of a request are set when it comes through."""

    app: ASGIApp
    access: Access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        session, role = self._who(headers)
        fresh = session is None and self.access.open
        if fresh:
            session = self.access.new_session("operator")
            role = session.role
        scope.setdefault("state", {}).update(role=role, session=session)
        answer = _with_headers(send, self._cookie(session, scope) if fresh and session else None)
        refusal = self._refusal(scope, headers, role)
        if refusal is not None:
            await refusal(scope, receive, answer)
            return
        await self.app(scope, _limited(receive, _limit(scope["path"])), answer)

    def _who(self, headers: Headers) -> tuple[Session | None, Role | None]:
        kind, _, token = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and not self.access.open:
            return None, self.access.role_of(token.strip())
        session = self.access.session_of(_cookie_of(headers))
        return session, None if session is None else session.role

    def _refusal(self, scope: Scope, headers: Headers, role: Role | None) -> Response | None:
        path, host = scope["path"], headers.get("host", "")
        if self.access.open and not is_loopback(_name_of(host)):
            # Another site's name that leads to this machine: what a rebinding attack looks like.
            return _refuse(scope, 421, f"this board answers to localhost, not to {host[:100]!r}")
        if "\0" in path or b"%00" in scope["query_string"]:
            return _refuse(scope, 400, "the address holds a null byte, which no name here does")
        if int_or_none(headers.get("content-length")) > _limit(path):
            return _refuse(scope, 413, _TOO_LARGE)
        if scope["method"] not in _SAFE and not _same_origin(headers, host):
            return _refuse(scope, 403, "the request comes from another site")
        if path.startswith(_PUBLIC):
            return None
        if role is None:
            return _ask_for_token(scope, headers)
        if scope["method"] not in _SAFE and role != "operator" and path != "/logout":
            return _refuse(scope, 403, "a viewer may look; this needs an operator's token")
        return None

    def _cookie(self, session: Session, scope: Scope) -> str:
        return cookie_line(session.cookie, scope["scheme"] == "https")


def cookie_line(value: str, secure: bool, age_s: int = SESSION_S) -> str:
    """The Set-Cookie of a session."""
    line = f"{COOKIE}={value}; Path=/; Max-Age={age_s}; HttpOnly; SameSite=Lax"
    return line + ("; Secure" if secure else "")


def int_or_none(text: str | None) -> int:
    return int(text) if text is not None and text.isascii() and text.isdigit() else 0


def _limit(path: str) -> int:
    return LARGEST_UPLOAD if path in _UPLOADS else LARGEST_BODY


def _name_of(host: str) -> str:
    """A Host header without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _same_origin(headers: Headers, host: str) -> bool:
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None and site not in ("same-origin", "none"):
        return False
    return origin is None or urlsplit(origin).netloc == host


def _cookie_of(headers: Headers) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return "" if found is None else found.value


def _ask_for_token(scope: Scope, headers: Headers) -> Response:
    if scope["method"] == "GET" and "text/html" in headers.get("accept", ""):
        query = scope.get("query_string", b"").decode("latin-1")
        wanted = scope["path"] + (f"?{query}" if query else "")
        return RedirectResponse(f"/login?next={quote(wanted, safe='')}", 303)
    refused = _refuse(scope, 401, "a token is wanted: Authorization: Bearer TOKEN")
    refused.headers["www-authenticate"] = 'Bearer realm="chorale"'
    return refused


def _refuse(scope: Scope, status: int, text: str) -> Response:
    if scope["path"].startswith("/api/"):
        return JSONResponse({"error": text}, status)
    return PlainTextResponse(f"chorale: {text}\n", status)


def _limited(receive: Receive, limit: int) -> Receive:
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > limit:
            raise HTTPException(413, _TOO_LARGE)
        return message

    return counted


def _with_headers(send: Send, cookie: str | None) -> Send:
    async def decorated(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers[name] = value
            headers.setdefault("cache-control", "no-store")
            # A tile may be kept by caches, a session may not.
            if cookie is not None and headers["cache-control"] == "no-store":
                headers.append("set-cookie", cookie)
        await send(message)

    return decorated
