"""Access to the board: tokens, signed session cookies, and the CSRF token of every form.

A tokens file holds digests of tokens (`chorale token` makes both), or tokens as they are. SHA-256 is enough
for a random secret of 192 bits, which nobody guesses; a slow hash is for passwords that people choose.

Without a tokens file everyone who can reach the board is an operator, so it binds to loopback only.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Literal

from itsdangerous import BadSignature, Signer, TimestampSigner

from infra.errors import BadSetting
from infra.printable import printable

logger = logging.getLogger(__name__)
Role = Literal["viewer", "reviewer", "operator"]
"""A viewer reads; a reviewer also keeps and rejects images; an operator may change everything."""
ROLES: tuple[Role, ...] = ("viewer", "reviewer", "operator")
COOKIE = "chorale_session"
SESSION_S = 12 * 3600
SIGNED_IMAGE_S = 3600
_MIN_TOKEN_LENGTH = 16
_SECRET_BYTES = 24
_LONGEST_NAME = 60
_UNNAMED = "token "
"""How the name of a token begins that was given to nobody in particular."""
_PROCESS_SECRET = secrets.token_bytes(32)
_HASHED = re.compile(r"sha256:([0-9a-f]{64})")
_LINE = re.compile(r"(viewer|reviewer|operator)\s*[:=]\s*(\S+)(?:\s+#\s*(.*))?")


@dataclass(frozen=True)
class Token:
    """A token as the board knows it: its role, its SHA-256, and who it was given to."""

    role: Role
    digest: bytes = field(repr=False)
    name: str

    def line(self) -> str:
        """Its line of a tokens file."""
        return f"{self.role}=sha256:{self.digest.hex()}  # {self.name}"


def new_token(role: Role, name: str) -> tuple[str, Token]:
    """A random token, which is shown once, and what is kept of it."""
    secret = secrets.token_urlsafe(_SECRET_BYTES)
    return secret, Token(role, _digest(secret), name)


@dataclass(frozen=True)
class Session:
    """A logged-in browser."""

    role: Role
    cookie: str = field(repr=False)
    digest: str = ""
    """Beginning of the digest of the token that it was opened with; empty without tokens."""


@dataclass(frozen=True)
class Access:
    """The tokens; none means that everyone who can reach the board is an operator."""

    tokens: tuple[Token, ...] = ()
    _key: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)
    by_proxy: bool = False
    """Whether a proxy logs people in, so that nobody is let in for want of tokens."""

    @property
    def open(self) -> bool:
        """True when neither tokens nor a proxy are configured: everyone who can reach the board is an
        operator."""
        return not self.tokens and not self.by_proxy

    def find(self, given: str) -> Token | None:
        """The known token that equals this one, or None. Compares with every one, in constant time."""
        digest, found = _digest(given), None
        for token in self.tokens:
            higher = found is None or ROLES.index(token.role) > ROLES.index(found.role)
            if hmac.compare_digest(digest, token.digest) and higher:
                found = token
        return found

    def role_of(self, given: str) -> Role | None:
        """The role of a token, or None."""
        found = self.find(given)
        return None if found is None else found.role

    def name_of(self, session: Session) -> str:
        """Who the token of a session was given to; empty without tokens."""
        return next((token.name for token in self.tokens if _beginning(token) == session.digest), "")

    def new_session(self, role: Role, token: Token | None = None, digest: str = "") -> Session:
        digest = digest if token is None else _beginning(token)
        cookie = self._sessions().sign(f"{role}.{digest}.{secrets.token_hex(16)}").decode()
        return Session(role, cookie, digest)

    def session_of(self, cookie: str) -> Session | None:
        """The session of a cookie that this key signed less than `SESSION_S` seconds ago, or None."""
        try:
            role, _, rest = self._sessions().unsign(cookie, max_age=SESSION_S).decode().partition(".")
        except BadSignature:
            return None
        return Session(_role(role), cookie, rest.partition(".")[0])

    def csrf_token(self, session: Session) -> str:
        """The token that every form of this session must send back; no other site can know it."""
        return self._csrf().get_signature(session.cookie).decode()

    def is_csrf_token(self, session: Session, token: str) -> bool:
        return self._csrf().verify_signature(session.cookie, token)

    def sign_image(self, name: str) -> str:
        """A part of an address that stands for a token, for one image and an hour."""
        return self._images().sign(name).decode()

    def signed_image(self, signed: str) -> str | None:
        """The name of the image that `sign_image` signed with this key within the last hour, or None."""
        try:
            return self._images().unsign(signed, max_age=SIGNED_IMAGE_S).decode()
        except (BadSignature, UnicodeDecodeError):
            return None

    def _images(self) -> TimestampSigner:
        return TimestampSigner(self._key, salt="image", key_derivation="hmac", digest_method=hashlib.sha256)

    def _sessions(self) -> TimestampSigner:
        return TimestampSigner(self._key, salt="session", key_derivation="hmac", digest_method=hashlib.sha256)

    def _csrf(self) -> Signer:
        return Signer(self._key, salt="csrf", key_derivation="hmac", digest_method=hashlib.sha256)


def proxy_access(secret: bytes) -> Access:
    """Without tokens, where a proxy logs people in. Boards with the same secret share sessions."""
    return Access((), hmac.digest(secret, b"proxy", "sha256"), by_proxy=True)


def read_access(tokens_file: str, secret: bytes = _PROCESS_SECRET) -> Access:
    """Read a tokens file; raises `BadSetting` when it cannot be used. No file name gives open access.

    Boards with the same `secret` and the same tokens accept each other's sessions.
    """
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
    # Several boards accept each other's sessions, and changing a token ends the old ones. The digests alone
    # must not give the key, or whoever reads the file could sign sessions.
    digests = b"".join(sorted(token.digest for token in tokens))
    return Access(tokens, hmac.digest(secret, digests, "sha256"))


@dataclass
class TokensFile:
    """A tokens file that may change while a board runs."""

    path: str
    secret: bytes = field(repr=False)
    access: Access
    _read: object = None
    _problem: str = ""

    @classmethod
    def open(cls, path: str, secret: bytes) -> TokensFile:
        """Read it for the first time; raises `BadSetting`."""
        return cls(path, secret, read_access(path, secret), _version(path))

    def current(self) -> Access:
        """The tokens as the file has them now; the last good ones while it cannot be used."""
        version = _version(self.path)
        if version == self._read:
            return self.access
        try:
            self.access, self._read, self._problem = read_access(self.path, self.secret), version, ""
        except BadSetting as exc:
            if str(exc) != self._problem:
                self._problem = str(exc)
                logger.error("%s; the tokens of before stay valid", exc)
        return self.access


def _version(path: str) -> object:
    """Changes with the file's content. A mounted Secret is replaced by another file."""
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def is_person(name: str) -> bool:
    """Whether a token's name was given to it, so that it says who sends a request."""
    return bool(name) and not name.startswith(_UNNAMED)


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


def _parse_line(number: int, line: str, path: str) -> Token:
    """Errors name the line and never its content."""
    match = _LINE.fullmatch(line.strip())
    if match is None:
        raise BadSetting(
            "tokens_file",
            path,
            f"is wrong in line {number}; write ROLE=TOKEN, ROLE one of {', '.join(ROLES)}",
        )
    if len(match[2]) < _MIN_TOKEN_LENGTH:
        raise BadSetting(
            "tokens_file", path, f"has a token shorter than {_MIN_TOKEN_LENGTH} characters in line {number}"
        )
    hashed = _HASHED.fullmatch(match[2])
    if hashed is None and match[2].startswith("sha256:"):
        raise BadSetting("tokens_file", path, f"has no SHA-256 in line {number}; make one with chorale token")
    digest = bytes.fromhex(hashed[1]) if hashed else _digest(match[2])
    name = printable(match[3] or "").strip()[:_LONGEST_NAME] or f"{_UNNAMED}{digest.hex()[:8]}"
    return Token(_role(match[1]), digest, name)


def _role(text: str) -> Role:
    return next((role for role in ROLES if role == text), "viewer")


def _beginning(token: Token) -> str:
    return token.digest.hex()[:12]


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="surrogateescape")).digest()
