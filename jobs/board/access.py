"""Who may do what on the board: tokens, sessions, and the word that every form has to bring along.

Without a tokens file whoever reaches the board is an operator, which is why it then binds loopback alone.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Literal

from infra.errors import BadSetting

Role = Literal["viewer", "operator"]
COOKIE = "chorale_session"
SESSION_S = 12 * 3600
_SHORTEST = 16
_LINE = re.compile(r"(viewer|operator)\s*[:=]\s*(\S+)")


@dataclass(frozen=True)
class Session:
    """A browser that has been let in."""

    role: Role
    cookie: str = field(repr=False)


@dataclass(frozen=True)
class Access:
    """The tokens, (role, SHA-256) of each; none of them is kept as it was written."""

    tokens: tuple[tuple[Role, bytes], ...] = ()
    _key: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    @property
    def open(self) -> bool:
        """May everybody in who reaches the board?"""
        return not self.tokens

    def role_of(self, token: str) -> Role | None:
        """What a token allows. Every known one is compared, in constant time."""
        digest, found = _digest(token), None
        for role, known in self.tokens:
            if hmac.compare_digest(digest, known) and found != "operator":
                found = role
        return found

    def new_session(self, role: Role) -> Session:
        text = f"{role}.{int(time.time()) + SESSION_S}.{secrets.token_hex(16)}"
        return Session(role, f"{text}.{self._sign(text)}")

    def session_of(self, cookie: str) -> Session | None:
        """The session of a cookie that we have signed and that is not over."""
        text, _, signature = cookie.rpartition(".")
        if not hmac.compare_digest(signature.encode(), self._sign(text).encode()):
            return None
        role, ends, _ = text.split(".")
        if int(ends) < time.time():
            return None
        return Session("operator" if role == "operator" else "viewer", cookie)

    def form_word(self, session: Session) -> str:
        """What a form of this session has to bring along, which no other site can know."""
        return self._sign(f"form {session.cookie}")

    def is_form_word(self, session: Session, word: str) -> bool:
        return hmac.compare_digest(self.form_word(session).encode(), word.encode())

    def _sign(self, text: str) -> str:
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()


def read_access(tokens_file: str) -> Access:
    """The access that a tokens file gives; raises `BadSetting` for one that cannot be used."""
    if not tokens_file:
        return Access()
    try:
        lines = Path(tokens_file).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as exc:
        raise BadSetting("tokens_file", tokens_file, f"cannot be read ({exc}); check the path") from exc
    tokens = tuple(_token(number, line, tokens_file) for number, line in enumerate(lines, 1) if _says(line))
    if not tokens:
        raise BadSetting("tokens_file", tokens_file, "holds no token; write a line operator=TOKEN")
    # Signed by the tokens, so that several boards know each other's sessions and a new token ends the old.
    return Access(tokens, hashlib.sha256(b"".join(sorted(digest for _, digest in tokens))).digest())


def check_address(host: str, access: Access) -> None:
    """Refuse an address that others can reach, unless tokens keep them out."""
    if access.open and not is_loopback(host):
        raise BadSetting(
            "host", host, "can be reached by others; name a file of tokens in CHORALE_TOKENS_FILE first"
        )


def is_loopback(host: str) -> bool:
    """Is this a name or an address of this machine alone?"""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _says(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#")


def _token(number: int, line: str, path: str) -> tuple[Role, bytes]:
    """Errors name the line, never what stands there."""
    match = _LINE.fullmatch(line.strip())
    if match is None:
        raise BadSetting(
            "tokens_file", path, f"is wrong in line {number}; write viewer=TOKEN or operator=TOKEN"
        )
    if len(match[2]) < _SHORTEST:
        raise BadSetting(
            "tokens_file", path, f"has a token of less than {_SHORTEST} characters in line {number}"
        )
    return ("operator" if match[1] == "operator" else "viewer"), _digest(match[2])


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="surrogateescape")).digest()
