"""Real services for tests: skipped on a laptop that lacks them, required where CI=true."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from infra.broker import redis_executable
from tests.support.cli import wait_until


def require(found: object, what: str, package: str) -> None:
    """Go on when `found`; else skip with the reason, or fail in CI."""
    if found:
        return
    reason = f"{what} is not installed; apt-get install {package}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def postgres_binaries() -> Path | None:
    """The folder of the newest PostgreSQL server here, Debian's layout or PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).parent if on_path else None


@contextmanager
def postgres_server(folder: Path, address: str = "127.0.0.1") -> Iterator[str]:
    """A private PostgreSQL at an address of ours; yields its URL."""
    binaries = postgres_binaries()
    require(binaries, "PostgreSQL's server", "postgresql")
    assert binaries is not None
    port, data = free_port(), folder / "postgres"
    data.mkdir()
    user = _server_user(data)

    def call(program: str, *arguments: str) -> None:
        subprocess.run(
            [str(binaries / program), *arguments],
            check=True,
            capture_output=True,
            user=user,
            cwd=data,
            timeout=120,
        )

    call("initdb", "-D", str(data), "-U", "chorale", "-A", "trust", "--no-sync")
    with (data / "pg_hba.conf").open("a") as rules:
        rules.write("host all all 10.77.0.0/24 trust\n")
    options = f"-p {port} -c listen_addresses={address} -c unix_socket_directories={data} -c fsync=off"
    call("pg_ctl", "-D", str(data), "-l", str(data / "log"), "-o", options, "-w", "start")
    try:
        yield f"postgresql://chorale@{address}:{port}/postgres"
    finally:
        call("pg_ctl", "-D", str(data), "-m", "immediate", "-w", "stop")


def _server_user(data: Path) -> str | None:
    """PostgreSQL refuses to run as root: then it runs as its own user, who must reach its folder."""
    if os.geteuid() != 0:
        return None
    account = pwd.getpwnam("postgres")
    os.chown(data, account.pw_uid, account.pw_gid)
    for parent in data.parents:
        if parent.owner() == "root" and parent != Path("/") and not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o011)
    return "postgres"


@contextmanager
def redis_server(folder: Path, address: str) -> Iterator[str]:
    """A private Redis at an address of ours, with a password; yields its URL."""
    port, password = free_port(), "rehearsal"
    options = ["--bind", address, "--port", str(port), "--requirepass", password, "--save", ""]
    server = subprocess.Popen(
        [redis_executable(), *options, "--dir", str(folder)],
        stdout=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: _answers(address, port), 10)
        yield f"redis://:{password}@{address}:{port}/0"
    finally:
        server.kill()
        server.wait()


def _answers(address: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((address, port)) == 0
