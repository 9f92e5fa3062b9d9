"""Checks that every request passes first: host, origin, size, and the role of the client.

Plain ASGI, because every tile request passes it too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from math import ceil
from urllib.parse import quote, urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobs.board.access import COOKIE, SESSION_S, Access, Role, Session, is_loopback
from jobs.board.board import WHO, Board
from jobs.board.login_limit import LoginLimit
from jobs.board.openai_errors import openai_error, speaks_openai
from jobs.board.proxy_login import PEER, SESSION, NotLoggedIn, User
from jobs.db.audit import record

LARGEST_BODY = 1 << 20
LARGEST_UPLOAD = 16 << 20
"""Bytes of a request body; a batch file is an upload."""
_UPLOADS = ("/submit/batch", "/api/v1/batches", "/v1/images/edits")
_FILES = "/api/v1/files/"
"""Files that are sent one by one; the settings limit their bytes."""
_WAITING = "/v1/images/"
"""Requests that wait for their images."""
_TOO_LARGE = "the request is too large"
_SAFE = ("GET", "HEAD", "OPTIONS")
_REVIEW = re.compile(r"/api/v1/batches/[^/]+/review|/batches/[^/]+/keep-rest")
"""What reviewers may change."""
_PUBLIC = ("/healthz", "/login", "/static/", "/v1/images/files/", "/thumbnails/")
"""The addresses of images are signed."""
_OPENSEADRAGON = "'sha256-9xTiqzfwFaL2SGb1rmr8gysEwVVjIvqWAgmZgqFqpEE='"
"""The one style rule that the vendored viewer adds to the page (no outline on touch screens)."""
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
class SecurityMiddleware:
    """Wraps the board's app. Sets `state.role` and `state.session` of the requests that it lets pass."""

    app: ASGIApp
    board: Board

    @property
    def access(self) -> Access:
        return self.board.access

    @property
    def logins(self) -> LoginLimit:
        return self.board.logins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        self.board.current_access()
        wait_s = self.logins.wait_s(address_of(scope)) if _brings_token(scope, headers) else 0.0
        if wait_s > 0:
            text = f"too many wrong tokens from this address; try again in {ceil(wait_s)} s"
            refused = _refuse(scope, 429, text)
            refused.headers["retry-after"] = str(ceil(wait_s))
            await refused(scope, receive, _with_headers(send, None))
            return
        try:
            user = self._user(scope, headers)
        except NotLoggedIn as exc:
            await _refuse(scope, 403, str(exc))(scope, receive, _with_headers(send, None))
            return
        session, role, name = self._authenticate(headers) if user is None else self._known(user, headers)
        if role is None and _is_bearer(headers) and not self.access.open:
            self.logins.count_wrong(address_of(scope))
        fresh = session is None and (self.access.open or user is not None)
        if fresh:
            digest = "" if user is None else user.digest
            session = self.access.new_session(role or "operator", digest=digest)
            role = session.role
        who = f"{WHO}: {name or role} at {address_of(scope) or 'a socket'}"
        state = {"role": role, "session": session, "who": who, "name": name, "by_proxy": user is not None}
        scope.setdefault("state", {}).update(state)
        if fresh and user is not None and "text/html" in headers.get("accept", ""):
            await run_in_threadpool(self._note_login, who, user)
        respond = _with_headers(send, self._cookie(session, scope) if fresh and session else None)
        refusal = self._refusal(scope, headers, role)
        if refusal is not None:
            await refusal(scope, receive, respond)
            return

        async def refuse(status: int, text: str) -> None:
            response = _refuse(scope, status, text)
            response.headers["retry-after"] = "30"
            await response(scope, receive, respond)

        path = scope["path"]
        limited = _limited(receive, self._limit(path))
        slow = path in _UPLOADS or path.startswith((_WAITING, _FILES))
        await self.board.deadlines.answer_in_time(
            self.app, scope, limited, respond, refuse, slow, slow_body=path.startswith(_FILES)
        )

    def _user(self, scope: Scope, headers: Headers) -> User | None:
        """Whom the proxy has logged in. Raises `NotLoggedIn`."""
        if self.board.proxy is None:
            return None
        return self.board.proxy.user(headers, scope.get(PEER, address_of(scope)))

    def _known(self, user: User, headers: Headers) -> tuple[Session | None, Role, str]:
        """The session that the user's browser has, if it has one; the role is always that of now."""
        session = self.access.session_of(_cookie_of(headers))
        mine = session is not None and session.digest == user.digest and session.role == user.role
        return session if mine else None, user.role, user.name

    def _note_login(self, who: str, user: User) -> None:
        with self.board.farm.database.write() as connection:
            record(connection, who, "log in", "the board", role=user.role)

    def _authenticate(self, headers: Headers) -> tuple[Session | None, Role | None, str]:
        """The session, the role, and who the token was given to."""
        if _is_bearer(headers) and not self.access.open:
            token = self.access.find(headers["authorization"].partition(" ")[2].strip())
            return (None, None, "") if token is None else (None, token.role, token.name)
        session = self.access.session_of(_cookie_of(headers))
        if session is None or session.digest.startswith(SESSION):
            # That of a user whom the proxy has logged in is good for nothing without the proxy.
            return None, None, ""
        return session, session.role, self.access.name_of(session)

    def _refusal(self, scope: Scope, headers: Headers, role: Role | None) -> Response | None:
        path, host = scope["path"], headers.get("host", "")
        if self.access.open and not is_loopback(_host_name(host)):
            # Another site's name that resolves to this machine: DNS rebinding.
            return _refuse(scope, 421, f"this board only answers to localhost, not to {host[:100]!r}")
        if "\0" in path or b"%00" in scope["query_string"]:
            return _refuse(scope, 400, "the address contains a null byte")
        if _content_length(headers) > self._limit(path):
            return _refuse(scope, 413, _TOO_LARGE)
        if scope["method"] not in _SAFE and not _same_origin(headers, host):
            return _refuse(scope, 403, "the request comes from another site")
        if path.startswith(_PUBLIC):
            return None
        if role is None:
            return _login_required(scope, headers)
        if scope["method"] not in _SAFE and role != "operator" and path != "/logout":
            if role == "reviewer":
                text = "reviewers only keep and reject images; log in with an operator's token"
                return None if _REVIEW.fullmatch(path) else _refuse(scope, 403, text)
            return _refuse(scope, 403, "viewers cannot change anything; log in with an operator's token")
        return None

    def _limit(self, path: str) -> int:
        """Bytes of a request's body."""
        if path.startswith(_FILES):
            return int(self.board.farm.settings.upload_max_mib * 2**20)
        return LARGEST_UPLOAD if path in _UPLOADS else LARGEST_BODY

    def _cookie(self, session: Session, scope: Scope) -> str:
        return cookie_line(session.cookie, scope["scheme"] == "https")


def address_of(scope: Scope) -> str:
    """The client's address; empty for one without, of a unix socket."""
    client = scope.get("client")
    return "" if client is None else str(client[0])


def _is_bearer(headers: Headers) -> bool:
    return headers.get("authorization", "").partition(" ")[0].lower() == "bearer"


def _brings_token(scope: Scope, headers: Headers) -> bool:
    return _is_bearer(headers) or (scope["method"] == "POST" and scope["path"] == "/login")


def cookie_line(value: str, secure: bool, age_s: int = SESSION_S) -> str:
    """The Set-Cookie header of a session."""
    line = f"{COOKIE}={value}; Path=/; Max-Age={age_s}; HttpOnly; SameSite=Lax"
    return line + ("; Secure" if secure else "")


def _content_length(headers: Headers) -> int:
    """The declared length; 0 when there is none, because `_limited` counts what arrives anyway."""
    text = headers.get("content-length", "")
    # More digits are more than any limit, and int() refuses thousands of them.
    return int(text[:18]) if text.isascii() and text.isdigit() else 0


def _host_name(host: str) -> str:
    """The name in a Host header, without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _same_origin(headers: Headers, host: str) -> bool:
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None and site not in ("same-origin", "none"):
        return False
    return origin is None or _place_of(origin) == host


def _place_of(origin: str) -> str | None:
    """Host and port of an origin; None for one that is no URL."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def _cookie_of(headers: Headers) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return "" if found is None else found.value


def _login_required(scope: Scope, headers: Headers) -> Response:
    if scope["method"] == "GET" and "text/html" in headers.get("accept", ""):
        query = scope.get("query_string", b"").decode("latin-1")
        wanted = scope["path"] + (f"?{query}" if query else "")
        return RedirectResponse(f"/login?next={quote(wanted, safe='')}", 303)
    refused = _refuse(scope, 401, "a token is required: send the header Authorization: Bearer TOKEN")
    refused.headers["www-authenticate"] = 'Bearer realm="chorale"'
    return refused


def _refuse(scope: Scope, status: int, text: str) -> Response:
    if speaks_openai(scope["path"]):
        return openai_error(status, text)
    if scope["path"].startswith("/api/"):
        return JSONResponse({"error": text}, status)
    return PlainTextResponse(f"chorale: {text}\n", status)


def _limited(receive: Receive, limit: int) -> Receive:
    received = 0

    async def limited() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > limit:
            raise HTTPException(413, _TOO_LARGE)
        return message

    return limited


def _with_headers(send: Send, cookie: str | None) -> Send:
    async def with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers[name] = value
            headers.setdefault("cache-control", "no-store")
            # Caches may keep a tile; they must not keep a session cookie.
            if cookie is not None and headers["cache-control"] == "no-store":
                headers.append("set-cookie", cookie)
        await send(message)

    return with_headers
