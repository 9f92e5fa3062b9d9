"""Access to the board: tokens, signed session cookies, and the CSRF token of every form.

Without a tokens file everyone who can reach the board is an operator, so it binds to loopback only.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Literal

from itsdangerous import BadSignature, Signer, TimestampSigner

from infra.errors import BadSetting

Role = Literal["viewer", "operator"]
COOKIE = "chorale_session"
SESSION_S = 12 * 3600
_MIN_TOKEN_LENGTH = 16
_LINE = re.compile(r"(viewer|operator)\s*[:=]\s*(\S+)")


@dataclass(frozen=True)
class Session:
    """A logged-in browser."""

    role: Role
    cookie: str = field(repr=False)


@dataclass(frozen=True)
class Access:
    """The tokens as (role, SHA-256); the tokens themselves are not stored."""

    tokens: tuple[tuple[Role, bytes], ...] = ()
    _key: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    @property
    def open(self) -> bool:
        """True when no tokens are configured: everyone who can reach the board is an operator."""
        return not self.tokens

    def role_of(self, token: str) -> Role | None:
        """The role of a token, or None. Compares with every known token, in constant time."""
        digest, found = _digest(token), None
        for role, known in self.tokens:
            if hmac.compare_digest(digest, known) and found != "operator":
                found = role
        return found

    def new_session(self, role: Role) -> Session:
        return Session(role, self._sessions().sign(f"{role}.{secrets.token_hex(16)}").decode())

    def session_of(self, cookie: str) -> Session | None:
        """The session of a cookie that this key signed less than `SESSION_S` seconds ago, or None."""
        try:
            role = self._sessions().unsign(cookie, max_age=SESSION_S).decode().partition(".")[0]
        except BadSignature:
            return None
        return Session("operator" if role == "operator" else "viewer", cookie)

    def csrf_token(self, session: Session) -> str:
        """The token that every form of this session must send back; no other site can know it."""
        return self._csrf().get_signature(session.cookie).decode()

    def is_csrf_token(self, session: Session, token: str) -> bool:
        return self._csrf().verify_signature(session.cookie, token)

    def _sessions(self) -> TimestampSigner:
        return TimestampSigner(self._key, salt="session", key_derivation="hmac", digest_method=hashlib.sha256)

    def _csrf(self) -> Signer:
        return Signer(self._key, salt="csrf", key_derivation="hmac", digest_method=hashlib.sha256)


def read_access(tokens_file: str) -> Access:
    """Read a tokens file; raises `BadSetting` when it cannot be used. No file name gives open access."""
    if not tokens_file:
        return Access()
    try:
        lines = Path(tokens_file).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as exc:
        raise BadSetting("tokens_file", tokens_file, f"cannot be read ({exc}); check the path") from exc
    tokens = tuple(
        _parse_line(number, line, tokens_file)
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.lstrip().startswith("#")
    )
    if not tokens:
        raise BadSetting("tokens_file", tokens_file, "holds no token; write a line operator=TOKEN")
    # The key derives from the tokens: several boards accept each other's sessions, and changing a token
    # ends the old sessions.
    return Access(tokens, hashlib.sha256(b"".join(sorted(digest for _, digest in tokens))).digest())


def check_address(host: str, access: Access) -> None:
    """Refuse an address that other machines can reach unless tokens are configured."""
    if access.open and not is_loopback(host):
        raise BadSetting(
            "host",
            host,
            "is reachable from other machines; set CHORALE_TOKENS_FILE first",
        )


def is_loopback(host: str) -> bool:
    """True for `localhost` and loopback addresses."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _parse_line(number: int, line: str, path: str) -> tuple[Role, bytes]:
    """Errors name the line and never its content."""
    match = _LINE.fullmatch(line.strip())
    if match is None:
        raise BadSetting(
            "tokens_file", path, f"is wrong in line {number}; write viewer=TOKEN or operator=TOKEN"
        )
    if len(match[2]) < _MIN_TOKEN_LENGTH:
        raise BadSetting(
            "tokens_file", path, f"has a token shorter than {_MIN_TOKEN_LENGTH} characters in line {number}"
        )
    return ("operator" if match[1] == "operator" else "viewer"), _digest(match[2])


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="surrogateescape")).digest()
