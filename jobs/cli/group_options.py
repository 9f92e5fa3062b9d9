"""The flags by which several machines render one image together without a farm; pods of a Job use them."""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import click

from infra.settings import read_settings
from jobs.node.network import interface_of
from render.errors import BadInput, PeersLost
from render.launch.rendezvous_config import (
    JOIN_S,
    MASTER_PORT,
    SECRET_VARIABLE,
    Rendezvous,
    check_secret,
)
from render.output.manifest import Manifest

Command = TypeVar("Command", bound=Callable[..., Any])
PEERS_S = JOIN_S
"""A node waits so long for the first one's name, and torchrun then for the others."""
OWN_NAME_S = 60.0
"""The first machine waits so long until its name means one of its own addresses."""
_LOOK_S = 2.0
MANIFEST_S = 300.0
"""A node whose ranks are done waits so long for the first one to publish the manifest."""


def group_options(command: Command) -> Command:
    """Add --nnodes, --node-rank, --master-address, --master-port, --group-secret-file."""
    for flag, default, text in (
        (
            "--group-secret-file",
            None,
            f"File with the secret that all machines of the group share; or set {SECRET_VARIABLE}.",
        ),
        ("--master-port", str(MASTER_PORT), "Port of the rendezvous on the first machine."),
        ("--master-address", None, "Name or address of the first machine."),
        ("--node-rank", None, "Number of this machine, from 0."),
        ("--nnodes", "1", "Machines that render this image together, or LEAST:MOST of them."),
    ):
        command = click.option(flag, default=default, show_default=default is not None, help=text)(command)
    return command


def take_rendezvous(options: dict[str, Any]) -> Rendezvous | None:
    """The rendezvous with the other machines, None without any; takes its options out of `options`.

    Raises `BadInput`.
    """
    nnodes, rank = options.pop("nnodes"), options.pop("node_rank")
    host, port = options.pop("master_address"), options.pop("master_port")
    secret_file = options.pop("group_secret_file")
    least, colon, most = nnodes.partition(":")
    nodes = whole("nnodes", most if colon else nnodes, 1, 1024)
    if nodes == 1:
        return None
    place = whole("node-rank", rank, 0, nodes - 1)
    if not host:
        raise BadInput("master-address", host, "is missing; name the machine with --node-rank 0")
    rendezvous = Rendezvous(
        nodes=nodes,
        least=whole("nnodes", least, 1, nodes) if colon else nodes,
        place=place,
        host=host,
        port=whole("master-port", port, 1, 65_535),
        secret=_read_secret(secret_file),
    )
    if place == 0 and _is_address(host):
        _check_own(host, _resolve(rendezvous), patient=False)
    return rendezvous


def _read_secret(file: str | None) -> str:
    """The secret of the group, from a file or the environment. Raises `BadInput`."""
    if file is None:
        return check_secret(SECRET_VARIABLE, read_settings({}).group_secret.get_secret_value())
    try:
        return check_secret("group-secret-file", Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise BadInput("group-secret-file", file, f"cannot be read ({exc})") from exc


def resolve_host(rendezvous: Rendezvous, on_tick: Callable[[], bool]) -> Rendezvous:
    """Wait until the first machine has a name, and find our interface on the way to it.

    The first machine takes the address that its name means: the group listens on that one only.
    Raises `PeersLost`, or `BadInput` on the first machine when the address is not its own.
    """
    end = time.monotonic() + PEERS_S
    end_of_own = time.monotonic() + OWN_NAME_S
    while True:
        try:
            found = _resolve(rendezvous)
            if rendezvous.place == 0:
                own = _check_own(rendezvous.host, found, patient=time.monotonic() < end_of_own)
                rendezvous = replace(rendezvous, host=own)
            return replace(rendezvous, interface=interface_of(_own_address(found)))
        except OSError as exc:
            if time.monotonic() > end:
                raise PeersLost(f"{rendezvous.host} cannot be reached after {PEERS_S:g} s ({exc})") from exc
        on_tick()
        time.sleep(0.2)


def await_manifest(finished: Callable[[], Manifest | None]) -> Manifest:
    """The manifest, which the first machine writes when the ranks of this one are done. Raises `PeersLost`.

    A machine must not call itself done before: the others could not go on without it.
    """
    end = time.monotonic() + MANIFEST_S
    while (manifest := finished()) is None:
        if time.monotonic() > end:
            raise PeersLost("the ranks here are done, but the first machine has not published the manifest")
        time.sleep(0.2)
    return manifest


class FinishedWithout(Exception):
    """The other machines have made the image before this one has joined them."""


@dataclass
class Joining:
    """A machine that is not the first one waits for the others: they may be done without it."""

    finished: Callable[[], Manifest | None]
    over: bool = False
    _look_at: float = field(default_factory=lambda: time.monotonic() + _LOOK_S)

    def look(self) -> None:
        """Raise `FinishedWithout` if the image is there; looks every few seconds while it is not `over`."""
        if self.over or time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + _LOOK_S
        if self.finished() is not None:
            raise FinishedWithout


def _resolve(rendezvous: Rendezvous) -> tuple[Any, ...]:
    return socket.getaddrinfo(rendezvous.host, rendezvous.port, type=socket.SOCK_STREAM)[0]


def _check_own(host: str, found: tuple[Any, ...], patient: bool) -> str:
    """The address that the first machine's name means, if others can reach this machine there.

    Raises `BadInput`, or `OSError` while that may change: a new pod's name means its predecessor's address
    for a while.
    """
    family, address = found[0], str(found[4][0])
    is_name = not _is_address(host)
    if is_name and host != "localhost" and ipaddress.ip_address(address).is_loopback:
        fix = f"is {address} on this machine, which others cannot reach; use its address"
        raise BadInput("master-address", host, fix)
    try:
        with socket.socket(family) as probe:
            probe.bind((address, 0, *found[4][2:]))
    except OSError as exc:
        if patient and is_name:
            raise
        means = f"is {address}, " if is_name else "is "
        fix = f"{means}not an address of this machine, the one with --node-rank 0"
        raise BadInput("master-address", host, fix) from exc
    return address


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _own_address(found: tuple[Any, ...]) -> str:
    """Our address on the way to another one; nothing is sent."""
    with socket.socket(found[0], socket.SOCK_DGRAM) as probe:
        probe.connect(found[4])
        address: str = probe.getsockname()[0]
        return address


def whole(field: str, text: str | None, low: int, high: int) -> int:
    """The number that a flag's text stands for; raises `BadInput`."""
    if text is None:
        raise BadInput(field, None, f"is missing; use {low} to {high}")
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not low <= int(text) <= high:
        raise BadInput(field, text, f"is not a whole number from {low} to {high}")
    return int(text)
