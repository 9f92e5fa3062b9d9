"""Hosts that may be connected to: a list of names and networks, and what an address has to be."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network


class AllowedHosts:
    """A list such as `cdn.example.com, *.shop.example, images.studio.lan:8080, 10.2.0.0/16`."""

    def __init__(self, text: str) -> None:
        self._hosts = tuple(host.strip().lower() for host in text.split(",") if host.strip())
        networks = map(_network_of, self._hosts)
        self._networks = tuple(network for network in networks if network is not None)

    def __bool__(self) -> bool:
        return bool(self._hosts)

    def names(self, host: str) -> bool:
        """Whether a host, with its port if a URL has one, is listed."""
        return any(
            host.endswith(allowed[1:]) if allowed.startswith("*.") else host == allowed
            for allowed in self._hosts
        )

    def may_connect(self, address: IPv4Address | IPv6Address) -> bool:
        """Of the addresses that a listed name has: public ones, and those that are listed themselves."""
        # Not at module level: every command would pay for urllib3.
        from infra.guarded_http import is_public

        return is_public(address) or any(address in network for network in self._networks)


def _network_of(host: str) -> IPv4Network | IPv6Network | None:
    """The network of a listed address, with or without a port, or of a network such as 10.2.0.0/16."""
    for text in (host, host.rpartition(":")[0].strip("[]")):
        try:
            return ip_network(text, strict=False)
        except ValueError:
            continue
    return None
