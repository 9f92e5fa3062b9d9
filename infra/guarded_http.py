"""HTTP to servers that others name: a name is resolved once, each of its addresses is checked, and one of
those is connected to. A name whose answer changes after the check (DNS rebinding) gains nothing.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import NameResolutionError, NewConnectionError

Address = IPv4Address | IPv6Address
Allowed = Callable[[Address], bool]
_NAT64 = IPv6Network("64:ff9b::/96")


class ForbiddenAddress(Exception):
    """A name leads to an address that is not allowed. No `OSError`, so that it is not tried again."""


def is_public(address: Address) -> bool:
    """Whether an address is one of the internet: not of this machine, a private network or a multicast group.

    An IPv6 address that stands for an IPv4 address is judged as that one.
    """
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            inner = IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
    return address.is_global and not address.is_multicast


def guarded_pool(allowed: Allowed, **options: Any) -> urllib3.PoolManager:
    """urllib3's pool, with its options, that connects to allowed addresses only.

    Its requests raise `ForbiddenAddress`. It knows no proxy: behind one, the proxy resolves names.
    """

    class Guarded:
        def _new_conn(self) -> socket.socket:
            return _connect_checked(self, allowed, super()._new_conn)  # type: ignore[misc]

    plain = type("GuardedHTTPConnection", (Guarded, HTTPConnection), {})
    secure = type("GuardedHTTPSConnection", (Guarded, HTTPSConnection), {})
    pool = urllib3.PoolManager(**options)
    pool.pool_classes_by_scheme = {
        "http": type("GuardedHTTPPool", (HTTPConnectionPool,), {"ConnectionCls": plain}),
        "https": type("GuardedHTTPSPool", (HTTPSConnectionPool,), {"ConnectionCls": secure}),
    }
    return pool


def _connect_checked(
    connection: Any, allowed: Allowed, connect: Callable[[], socket.socket]
) -> socket.socket:
    name = connection._dns_host
    addresses = _resolved(connection, name)
    if not all(allowed(address) for address in addresses):
        raise ForbiddenAddress(name)
    try:
        for left, address in zip(reversed(range(len(addresses))), addresses, strict=True):
            # What urllib3 connects to; the host of the request, and of the certificate, stays.
            connection._dns_host = str(address)
            try:
                return connect()
            except NewConnectionError:
                if left == 0:
                    raise
    finally:
        connection._dns_host = name
    raise NewConnectionError(connection, "the name has no address")


def _resolved(connection: Any, name: str) -> list[Address]:
    try:
        found = socket.getaddrinfo(name.strip("[]"), connection.port, type=socket.SOCK_STREAM)
    except UnicodeError as exc:
        raise NewConnectionError(connection, f"{name} is not the name of a host") from exc
    except socket.gaierror as exc:
        raise NameResolutionError(name, connection, exc) from exc
    return [ip_address(str(place[0]).partition("%")[0]) for *_, place in found]
