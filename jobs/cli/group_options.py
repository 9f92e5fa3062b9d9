"""The flags by which several machines render one image together without a farm; pods of a Job use them."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any, TypeVar

import click

from jobs.node.network import interface_of
from render.errors import BadInput, PeersLost
from render.launch.rank_group import MASTER_PORT, Rendezvous
from render.output.manifest import Manifest

Command = TypeVar("Command", bound=Callable[..., Any])
PEERS_S = 600.0
"""A node waits so long for the first one's name, and torchrun then for the others."""
MANIFEST_S = 300.0
"""A node whose ranks are done waits so long for the first one to publish the manifest."""


def group_options(command: Command) -> Command:
    """Add --nnodes, --node-rank, --master-address, --master-port."""
    for flag, default, text in (
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
    least, colon, most = nnodes.partition(":")
    nodes = whole("nnodes", most if colon else nnodes, 1, 1024)
    if nodes == 1:
        return None
    place = whole("node-rank", rank, 0, nodes - 1)
    if not host:
        raise BadInput("master-address", host, "is missing; name the machine with --node-rank 0")
    return Rendezvous(
        nodes=nodes,
        least=whole("nnodes", least, 1, nodes) if colon else nodes,
        place=place,
        host=host,
        port=whole("master-port", port, 1, 65_535),
    )


def await_host(rendezvous: Rendezvous, on_tick: Callable[[], bool]) -> str | None:
    """Wait until the first machine has a name; the interface of ours to talk over, if that can be told.

    Raises `PeersLost`.
    """
    end = time.monotonic() + PEERS_S
    while True:
        try:
            found = socket.getaddrinfo(rendezvous.host, rendezvous.port, type=socket.SOCK_STREAM)
            return interface_of(_own_address(found[0]))
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
    if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
        raise BadInput(field, text, f"is not a whole number from {low} to {high}")
    return int(text)
