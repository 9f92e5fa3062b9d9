"""Logins that a proxy has done: it names the user, and the groups, in headers (oauth2-proxy, Authelia, ...).

The headers are taken from the addresses of the proxy alone. A request that carries one from anywhere else is
refused, whatever else it brings.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from starlette.datastructures import Headers

from infra.errors import BadSetting
from infra.printable import printable
from infra.settings import Settings, check_unused
from jobs.board.access import ROLES, Role

PEER = "chorale.peer"
"""Where a request's scope has the address that its connection comes from, whatever headers say."""
ANYBODY, USER = "*", "user:"
"""Whoever the proxy has logged in; how a user is named among the groups."""
SESSION = "@"
"""How the digest of a session begins that is only good together with the header."""
_NAME = re.compile(r"[A-Za-z0-9-]{1,64}")
_LONGEST_NAME = 60
_ROLES_FORM = "operator=GROUP,GROUP; reviewer=GROUP; viewer=*"
_NEEDED = {
    "login_proxies": "give the proxy's addresses, e.g. 10.2.0.7 or 10.2.0.0/24",
    "login_roles": f"give the groups of each role, e.g. {_ROLES_FORM}",
}


class NotLoggedIn(Exception):
    """A request whose headers are refused; the text is one sentence for the client."""


@dataclass(frozen=True)
class User:
    """Someone whom the proxy has logged in."""

    name: str
    role: Role

    @property
    def digest(self) -> str:
        """What marks the user's sessions."""
        return SESSION + hashlib.sha256(self.name.encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class ProxyLogin:
    """Which headers are taken, from where, and what groups may do."""

    header: str
    """Names the user."""
    groups_header: str
    """Has the user's groups, separated by commas; empty for none."""
    proxies: tuple[IPv4Network | IPv6Network, ...]
    roles: dict[str, Role]
    """By group, `user:NAME`, or `*`."""

    @classmethod
    def of(cls, settings: Settings) -> ProxyLogin | None:
        """That of the settings; None where they name no header. Raises `BadSetting`."""
        header = settings.login_header
        if not header:
            names = ("login_groups_header", "login_proxies", "login_roles")
            check_unused(settings, names, "needs login_header, the header in which the proxy names the user")
            return None
        for name in ("login_header", "login_groups_header"):
            value = getattr(settings, name)
            if value and not _NAME.fullmatch(value):
                raise BadSetting(name, value, "is no name of a header; use e.g. X-Forwarded-User")
        for name, fix in _NEEDED.items():
            if not getattr(settings, name).strip():
                raise BadSetting(name, "", f"is missing; {fix}")
        return cls(
            header=header,
            groups_header=settings.login_groups_header,
            proxies=tuple(_network(each) for each in _parts(settings.login_proxies, ",")),
            roles=_roles(settings.login_roles),
        )

    def user(self, headers: Headers, peer: str) -> User | None:
        """Who sends a request; None for one without the header. Raises `NotLoggedIn`."""
        names = headers.getlist(self.header)
        groups = headers.getlist(self.groups_header) if self.groups_header else []
        if not names and not groups:
            return None
        if not self._is_proxy(peer):
            raise NotLoggedIn(f"the header {self.header} is taken from the proxy alone; log in there")
        if len(names) > 1:
            raise NotLoggedIn(f"the request has the header {self.header} more than once; check the proxy")
        name = printable(names[0]).strip()[:_LONGEST_NAME] if names else ""
        if not name:
            return None
        role = self._role(name, [part for text in groups for part in _parts(text, ",")])
        if role is None:
            raise NotLoggedIn(f"{name} is in no group that may use this board; ask whoever runs it")
        return User(name, role)

    def _is_proxy(self, peer: str) -> bool:
        try:
            address = ip_address(peer)
        except ValueError:
            return False
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return any(address in network for network in self.proxies)

    def _role(self, name: str, groups: list[str]) -> Role | None:
        """The highest one that the user, or one of the groups, has."""
        keys = (ANYBODY, f"{USER}{name}", *(group for group in groups if group != ANYBODY))
        found = [self.roles[key] for key in keys if key in self.roles]
        return max(found, key=ROLES.index, default=None)


def _network(text: str) -> IPv4Network | IPv6Network:
    try:
        found = ip_network(text)
    except ValueError as exc:
        raise BadSetting("login_proxies", text, f"is no address ({exc}); use e.g. 10.2.0.7") from exc
    if found.prefixlen == 0:
        raise BadSetting("login_proxies", text, "is every address; give the proxy's alone")
    return found


def _roles(text: str) -> dict[str, Role]:
    found: dict[str, Role] = {}
    for part in _parts(text, ";"):
        name, equals, groups = part.partition("=")
        role = next((each for each in ROLES if each == name.strip()), None)
        keys = _parts(groups, ",")
        if role is None or not equals or not keys:
            raise BadSetting("login_roles", part[:80], f"is wrong; write {_ROLES_FORM}")
        for key in keys:
            if ROLES.index(found.get(key, ROLES[0])) <= ROLES.index(role):
                found[key] = role
    return found


def _parts(text: str, separator: str) -> list[str]:
    return [part.strip() for part in text.split(separator) if part.strip()]
