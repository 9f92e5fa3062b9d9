"""What a node has to know to meet the other nodes of its group. Imports no torch."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from render.errors import BadInput

BACKEND = "chorale"
"""The name of our rendezvous in torchrun's registry."""
MASTER_PORT = 29400
"""Port of the rendezvous of several nodes without a farm."""
JOIN_S = 600.0
"""A node waits so long for the others."""
LAST_CALL_S = 15.0
"""A group that is large enough starts when no node has joined for so long."""
SECRET_VARIABLE = "CHORALE_GROUP_SECRET"
"""Environment variable of the secret of a group without a farm."""
SECRET_LENGTH = 32
"""Fewest characters of a secret; see `group_tls` for why it has to be random."""
LOOPBACK = "127.0.0.1"
MOVES = "CHORALE_GROUP_MOVES"
"""Environment variable of the ranks: see `Rendezvous.moves`."""
JOINS = "CHORALE_GROUP_JOINS"
"""Environment variable of the ranks of a node that joins a group which renders: the node's number."""
INTERFACE = "CHORALE_GROUP_INTERFACE"
"""Environment variable of the ranks: the interface that they listen on once some are on other nodes."""
INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
_LOOPBACK_INTERFACE = "lo0" if sys.platform == "darwin" else "lo"


@dataclass(frozen=True, kw_only=True)
class Rendezvous:
    """Where the ranks of several nodes meet; the defaults are those of a group of one node."""

    nodes: int = 1
    place: int = 0
    """Number of this node. Node 0 is the host: it decides who belongs to the group, and has rank 0."""
    first: int = 0
    """The node that decides who renders together and publishes; another one than 0 after a `Move`."""
    host: str = LOOPBACK
    """Address of the host for the group. The host listens on it, and on no other."""
    port: int = 0
    least: int | None = None
    """Fewer than `nodes` may do; None means that all have to come."""
    interface: str | None = None
    """The network interface between the nodes; what a host's name resolves to is often the loopback."""
    secret: str = field(default="", repr=False)
    """What all nodes know and nobody else does; a group of one node needs none."""
    moves: bool = False
    """Whether another node may become the first one when that is lost: whoever has started the group decides
    which one, and tells it with a `Move`."""
    joins: bool = False
    """Whether the group renders already: the ranks of this node are added to it."""
    opens: bool = False
    """Whether a group of one node may be told to let ranks of other nodes in."""
    join_s: float = JOIN_S
    last_call_s: float = LAST_CALL_S

    @property
    def holds_first(self) -> bool:
        """Whether this node is the group's first one."""
        return self.place == self.first

    @property
    def fewest(self) -> int:
        """The smallest number of nodes that may start."""
        return self.nodes if self.least is None else self.least

    def arguments(self) -> list[str]:
        """torchrun's arguments."""
        if self.joins:
            return ["--nnodes", "1:1", "--rdzv-backend", BACKEND, "--rdzv-id", "chorale"]
        host = f"[{self.host}]" if ":" in self.host else self.host
        nodes = ["--nnodes", f"{self.fewest}:{self.nodes}", "--rdzv-backend", BACKEND]
        return [*nodes, "--rdzv-id", "chorale", "--rdzv-endpoint", f"{host}:{self.port}"]

    def environment(self) -> dict[str, str]:
        """Which interface gloo and NCCL listen on: the loopback in a group of one node, whatever is set."""
        # NCCL's service for status queries listens too, and asks nobody who they are.
        ras = {"NCCL_RAS_ENABLE": os.environ.get("NCCL_RAS_ENABLE", "0"), MOVES: "1" if self.moves else "0"}
        ras |= {JOINS: str(self.place)} if self.joins else {}
        ras |= {} if self.interface is None else {INTERFACE: self.interface}
        if self.nodes == 1:
            # NCCL takes a name without "=" for a prefix.
            interfaces = (_LOOPBACK_INTERFACE, f"={_LOOPBACK_INTERFACE}")
            return ras | dict(zip(INTERFACE_VARIABLES, interfaces, strict=True))
        unset = [name for name in INTERFACE_VARIABLES if name not in os.environ]
        return ras if self.interface is None else ras | dict.fromkeys(unset, self.interface)

    def write(self, path: Path) -> None:
        """Leave it for the launcher, in a file that only its owner may read."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            json.dump(asdict(self), file)

    @classmethod
    def take(cls, path: Path) -> Rendezvous:
        """Read what `write` has left, and remove it."""
        rendezvous = cls(**json.loads(path.read_text(encoding="utf-8")))
        path.unlink()
        return rendezvous


@dataclass(frozen=True, kw_only=True)
class Move:
    """Another node is the first one of a group from now on."""

    first: int
    """Its number."""
    host: str
    """The address that it listens on for the group."""
    port: int
    nodes: tuple[int, ...]
    """The nodes that are left, with the first one."""

    def write(self, path: Path) -> None:
        """Write the file atomically: others are watching for it."""
        part = path.with_suffix(".part")
        part.write_text(json.dumps(asdict(self)), encoding="utf-8")
        part.rename(path)

    @classmethod
    def read(cls, path: Path) -> Move:
        """What `write` has left."""
        values = json.loads(path.read_text(encoding="utf-8"))
        return cls(**values | {"nodes": tuple(values["nodes"])})


def check_secret(field_name: str, secret: str | None) -> str:
    """The secret without white space around it; raises `BadInput`, which never shows its value."""
    text = (secret or "").strip()
    if len(text) < SECRET_LENGTH:
        short = f"too short, {len(text)} of at least {SECRET_LENGTH} characters" if text else "missing"
        fix = f"{short}; make one with openssl rand -hex 32 and give it to all machines"
        raise BadInput(field_name, None, fix)
    return text
