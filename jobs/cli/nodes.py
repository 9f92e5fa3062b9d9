"""`chorale up`, `agent`, `nodes`, `drain` and `undrain`: the machines of the farm."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
from pydantic import SecretStr

from infra.broker import embedded_redis
from infra.errors import BadSetting, DatabaseUnreachable
from infra.metrics_exporter import DEFAULT_ADDRESS
from infra.settings import Settings, default_home, read_settings
from infra.store.open import check_reach
from jobs.cli.farm_options import farm_options, this_user
from jobs.cli.help import examples
from jobs.cli.serve import PORT, board_process
from jobs.cli.terminal import print_json, print_line, print_table
from jobs.db import tables
from jobs.db.names import check_name
from jobs.db.node_changes import change_node
from jobs.db.nodes import list_nodes
from jobs.farm import Farm, open_farm, open_images
from jobs.formatting import maintenance_text, plural
from jobs.node.agent import Agent
from jobs.node.metrics_server import MetricsServer
from jobs.node.slot_images import parse_slot_images
from jobs.tags import parse_tags
from render.errors import BadInput
from render.launch.gpus import processors, smallest_memory_bytes, visible_gpus

_POLL_S = 1.0

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_metrics_option = click.option(
    "--metrics-address",
    metavar="HOST:PORT|off",
    default=None,
    help=f"Address of /metrics. [CHORALE_METRICS_ADDRESS, else {DEFAULT_ADDRESS} if it is free]",
)

_slot_images_option = click.option(
    "--slot-images",
    metavar="N|auto",
    default=None,
    help="Small images of one model that a slot renders at once, in shared model calls; auto: as many as "
    "fill a call and the slot's memory. [CHORALE_SLOT_IMAGES, else 1]",
)


_tag_option = click.option(
    "--tag",
    "tags",
    multiple=True,
    help="Tag of the node, such as a100, for jobs with --require-tag; may repeat. [CHORALE_TAGS]",
)


@click.command(epilog=examples("chorale agent --name n1 --slots 4 --address 10.0.0.11"))
@click.option("--name", default=None, help="Name of the node. [CHORALE_NODE, else the host name]")
@click.option(
    "--slots",
    type=click.IntRange(0, 1024),
    default=None,
    help="Number of slots; 0 only schedules. [number of GPUs, else CPU cores]",
)
@click.option(
    "--address", default=None, help="Address at which other nodes reach this one. [CHORALE_ADDRESS]"
)
@_tag_option
@_slot_images_option
@_metrics_option
@click.option("--database-url", default=None, help="URL of the farm's database. [CHORALE_DATABASE_URL]")
@click.option("--undrain", is_flag=True, help="Accept jobs even if the node was drained before.")
def agent(
    name: str | None,
    slots: int | None,
    address: str | None,
    tags: tuple[str, ...],
    slot_images: str | None,
    metrics_address: str | None,
    database_url: str | None,
    undrain: bool,
) -> None:
    """Run this machine as a node of the farm until Ctrl-C."""
    flags = {"database_url": database_url, "node": name, "address": address, "tags": ",".join(tags)}
    settings = read_settings(flags | {"slot_images": slot_images, "metrics_address": metrics_address})
    with open_farm(settings) as farm:
        made = _agent(farm, slots, settings.broker_url.get_secret_value() or None)
        if undrain:
            made.undrain()
        where = f"{plural(made.slots, 'slot')} at {made.address}"
        print_line(f"Node {made.name} with {where}; press Ctrl-C to stop", error=True)
        _run(made)
    _begin_anew_if_asked(made)


@click.command(epilog=examples("chorale up --slots 2"))
@click.option(
    "--slots",
    type=click.IntRange(1, 1024),
    default=None,
    help="Number of slots. [number of GPUs, else CPU cores]",
)
@click.option(
    "--port", type=click.IntRange(0, 65_535), default=PORT, show_default=True, help="Port of the board."
)
@click.option("--board/--no-board", default=True, show_default=True, help="Also serve the board.")
@_tag_option
@_slot_images_option
@_metrics_option
def up(
    slots: int | None,
    port: int,
    board: bool,
    tags: tuple[str, ...],
    slot_images: str | None,
    metrics_address: str | None,
) -> None:
    """Run a whole farm on this machine until Ctrl-C.

    It consists of an embedded database and broker, one node and the board.
    """
    flags = {"slot_images": slot_images, "metrics_address": metrics_address, "tags": ",".join(tags)}
    settings = read_settings(flags).model_copy(update={"database_url": SecretStr("")})
    with (
        _only_one(default_home()),
        open_farm(settings) as farm,
        embedded_redis(default_home() / "broker") as broker_url,
    ):
        if board:
            _check_port(port)
        made = _agent(farm, slots, broker_url)
        images = open_images(settings).url()
        print_line(f"Farm with {plural(made.slots, 'slot')}; images are written to {images}", error=True)
        print_line('Submit an image from another terminal: chorale submit "a red vase on marble"', error=True)
        with board_process(farm, port if board else None):
            _run(made)
    _begin_anew_if_asked(made)


@click.command(epilog=examples("chorale nodes"))
@farm_options
def nodes(farm: Farm, as_json: bool) -> None:
    """List the nodes: state, slots in use, device, tags, comments, maintenance, and problems."""
    with farm.database.read() as connection:
        known = list_nodes(connection)
    if as_json:
        print_json({"nodes": known})
        return
    rows = [
        (
            node["name"],
            node["state"],
            f"{node['used']}/{node['slots']}",
            node["device"],
            " ".join(node["tags"]) or "-",
            node["comment"] or "-",
            "; ".join(map(maintenance_text, node["maintenance"])) or "-",
            "; ".join(problem["text"] for problem in node["problems"]) or "-",
        )
        for node in known
    ]
    columns = ("node", "state", "slots", "device", "tags", "comment", "maintenance", "problem")
    print_table("nodes", columns, rows)


@click.command(epilog=examples("chorale drain n1", "chorale drain n1 --wait 3600"))
@click.argument("node", required=False)
@click.option(
    "--wait",
    "wait_s",
    metavar="SECONDS",
    type=click.IntRange(0, 7 * 86_400),
    default=0,
    help="Return once the node runs no group any more, or after so long. [0]",
)
@farm_options
def drain(farm: Farm, as_json: bool, node: str | None, wait_s: int) -> None:
    """Start no more jobs on a node. Running jobs go on; one that other nodes render too goes on without this
    one where the others have the memory. NODE defaults to CHORALE_NODE."""
    node = node or farm.settings.node
    if not node:
        raise click.UsageError("Name the node to drain; chorale nodes lists them")
    _drain(farm, as_json, node, True)
    _wait_until_idle(farm, node, wait_s)


@click.command(epilog=examples("chorale undrain n1"))
@click.argument("node")
@farm_options
def undrain(farm: Farm, as_json: bool, node: str) -> None:
    """Start jobs on a drained node again."""
    _drain(farm, as_json, node, False)


def _drain(farm: Farm, as_json: bool, node: str, draining: bool) -> None:
    with farm.database.write() as connection:
        change_node(connection, node, this_user(), draining=draining)
    if as_json:
        print_json({"node": node, "draining": draining})
    else:
        print_line(f"Node {node} {'starts no more jobs' if draining else 'starts jobs again'}")


def _wait_until_idle(farm: Farm, node: str, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        # A database that is away for a while must not end the wait, and with it the node's groups.
        with contextlib.suppress(DatabaseUnreachable), farm.database.read() as connection:
            if not any(each["used"] for each in list_nodes(connection) if each["name"] == node):
                return
        time.sleep(min(_POLL_S, max(0.0, end - time.monotonic())))


def _agent(farm: Farm, slots: int | None, broker_url: str | None) -> Agent:
    settings, gpus = farm.settings, visible_gpus()
    _check(settings)
    if settings.c2pa_certificate or settings.c2pa_key:
        from jobs.renditions.signing import check_signer

        check_signer(settings)
    name, address = settings.node or socket.gethostname(), settings.address or "127.0.0.1"
    check_name("name", name, tables.nodes.c.name)
    check_name("address", address, tables.nodes.c.address)
    if "/" in name:
        raise BadInput("name", name, "is not a valid node name; use letters, digits, dots and dashes")
    device = "cuda" if gpus else "cpu"
    return Agent(
        farm=farm,
        name=name,
        slots=slots if slots is not None else processors(),
        address=address,
        device=device,
        home=default_home() / "logs",
        metrics=MetricsServer(farm, name, device, settings.metrics_address),
        vram_bytes=smallest_memory_bytes() if gpus else None,
        tags=parse_tags("tags", [settings.tags]),
        broker_url=broker_url,
    )


@contextlib.contextmanager
def _only_one(home: Path) -> Iterator[None]:
    """Raise `BadInput` if another `chorale up` has this home; its broker and its node would be ours."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "up.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            fix = "is in use by another chorale up; stop that one, or set XDG_DATA_HOME to another folder"
            raise BadInput("home", str(home), fix) from exc
        yield


def _check_port(port: int) -> None:
    """Raise `BadInput` if the board cannot have its port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as exc:
            fix = f"is not available ({exc.strerror}); use another one, 0 for any, or --no-board"
            raise BadInput("port", port, fix) from exc


def _check(settings: Settings) -> None:
    """Raise for settings that would otherwise fail when they are first used."""
    parse_slot_images(settings.slot_images)
    check_reach(open_images(settings))
    if settings.report_mail and not settings.smtp_url.get_secret_value():
        raise BadSetting("smtp_url", "", "is not set; mail needs one, such as smtp://user:password@host:587")


def _begin_anew_if_asked(made: Agent) -> None:
    """Start this process again, as it was started, after `chorale node restart`. Its id stays, so whoever
    watches it sees no end."""
    if not made.restarts:
        return
    # The process that follows knows nothing of a signal that this one has had. One that came while the node
    # was ending has called `stop` once they are blocked; a later one ends the process, whichever it is.
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    for number in _STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
    if not made.restarts:
        return
    # A node that is drained stays so.
    words = [word for word in sys.orig_argv[1:] if word != "--undrain"]
    print_line(f"Node {made.name} restarts", error=True)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *words])


def _run(made: Agent) -> None:
    for number in _STOP_SIGNALS:
        signal.signal(number, made.stop)
    made.run()
