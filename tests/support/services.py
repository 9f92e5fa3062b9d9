"""Real services for tests: skipped on a laptop that lacks them, required where CI=true."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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


class Postgres:
    """A private PostgreSQL at an address of ours, in a folder of its own."""

    def __init__(self, folder: Path, address: str = "127.0.0.1") -> None:
        binaries = postgres_binaries()
        require(binaries, "PostgreSQL's server", "postgresql")
        assert binaries is not None
        self._binaries, self._data = binaries, folder / "postgres"
        self._address, self._port = address, free_port()
        self.url = f"postgresql://chorale@{address}:{self._port}/postgres"
        self._data.mkdir()
        self._user = _server_user(self._data)
        self._call("initdb", "-D", str(self._data), "-U", "chorale", "-A", "trust", "--no-sync")
        with (self._data / "pg_hba.conf").open("a") as rules:
            rules.write("host all all 10.77.0.0/16 trust\n")

    def start(self) -> None:
        options = f"-p {self._port} -c listen_addresses={self._address}"
        options += f" -c unix_socket_directories={self._data} -c fsync=off -c max_wal_size=128MB"
        log = str(self._data / "log")
        self._call("pg_ctl", "-D", str(self._data), "-l", log, "-o", options, "-w", "start")

    def stop(self) -> None:
        """At once, as when its machine fails."""
        self._call("pg_ctl", "-D", str(self._data), "-m", "immediate", "-w", "stop")

    def running(self) -> bool:
        """Whether its first process is there. A server whose disk is full ends by itself."""
        words = [str(self._binaries / "pg_ctl"), "-D", str(self._data), "status"]
        return subprocess.run(words, capture_output=True, user=self._user, cwd=self._data).returncode == 0

    def freeze(self, off: bool = False) -> None:
        """Stop all its processes where they are, or let them go on."""
        first = int((self._data / "postmaster.pid").read_text().split()[0])
        own = [first, *(pid for pid in map(int, _pids()) if _parent(pid) == first)]
        for pid in own:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT if off else signal.SIGSTOP)

    def _call(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [str(self._binaries / program), *arguments],
            check=True,
            capture_output=True,
            user=self._user,
            cwd=self._data,
            timeout=120,
        )


def _pids() -> list[str]:
    return [entry.name for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _parent(pid: int) -> int:
    """Pid of the parent of a process; 0 for one that has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


@contextmanager
def postgres_server(folder: Path, address: str = "127.0.0.1") -> Iterator[str]:
    """A PostgreSQL for as long as the block lasts; yields its URL."""
    server = Postgres(folder, address)
    server.start()
    try:
        yield server.url
    finally:
        server.stop()


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


class Redis:
    """A private Redis at an address of ours, with a password and without a memory of what was."""

    def __init__(self, folder: Path, address: str) -> None:
        self._folder, self._address, self._port = folder, address, free_port()
        self.url = f"redis://:rehearsal@{address}:{self._port}/0"
        self._server: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        options = ["--bind", self._address, "--port", str(self._port), "--requirepass", "rehearsal"]
        self._server = subprocess.Popen(
            [redis_executable(), *options, "--save", "", "--dir", str(self._folder)],
            stdout=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
        )
        wait_until(lambda: answers(self._address, self._port), 10)

    def stop(self) -> None:
        if self._server is not None:
            self._server.kill()
            self._server.wait()


@contextmanager
def redis_server(folder: Path, address: str) -> Iterator[str]:
    """A Redis for as long as the block lasts; yields its URL."""
    server = Redis(folder, address)
    server.start()
    try:
        yield server.url
    finally:
        server.stop()


def answers(address: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((address, port)) == 0


class Prometheus:
    """A private Prometheus on the loopback that scrapes addresses of ours each second."""

    def __init__(self, folder: Path, targets: list[str], rules: Path) -> None:
        require(shutil.which("prometheus"), "Prometheus", "prometheus")
        self._folder, self._port = folder, free_port()
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(rules / "*.yaml")],
            "scrape_configs": [{"job_name": "chorale", "static_configs": [{"targets": targets}]}],
        }
        # JSON is YAML.
        (folder / "prometheus.yaml").write_text(json.dumps(config))
        self._server: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        options = [f"--config.file={self._folder / 'prometheus.yaml'}"]
        options += [f"--storage.tsdb.path={self._folder / 'tsdb'}"]
        options += [f"--web.listen-address=127.0.0.1:{self._port}"]
        with (self._folder / "prometheus.log").open("ab") as log:
            self._server = subprocess.Popen(
                ["prometheus", *options], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        wait_until(lambda: answers("127.0.0.1", self._port), 30)

    def stop(self) -> None:
        if self._server is not None:
            self._server.terminate()
            self._server.wait()

    def ask(self, promql: str) -> dict[str, float]:
        """The value of each series of an instant query, by its labels as Prometheus writes them."""
        found = self._get("query", query=promql)["result"]
        return {_written(series["metric"]): float(series["value"][1]) for series in found}

    def rules(self) -> dict[str, str]:
        """Health of each rule, by its name."""
        return {
            rule["name"]: rule["health"] for group in self._get("rules")["groups"] for rule in group["rules"]
        }

    def _get(self, what: str, **parameters: str) -> Any:
        url = f"http://127.0.0.1:{self._port}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]


def _written(labels: dict[str, str]) -> str:
    return ",".join(
        f"{name}={value}" for name, value in sorted(labels.items()) if name not in ("instance", "job")
    )


@contextmanager
def prometheus_server(folder: Path, targets: list[str], rules: Path) -> Iterator[Prometheus]:
    """A Prometheus for as long as the block lasts."""
    server = Prometheus(folder, targets, rules)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def rabbitmq_server(folder: Path) -> Iterator[str]:
    """A private RabbitMQ on a loopback port, with an epmd of its own; yields its URL."""
    program = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
    require(program.exists(), "RabbitMQ", "rabbitmq-server")
    port, epmd = free_port(), str(free_port())
    environment = os.environ | {
        "HOME": str(folder),
        "ERL_EPMD_PORT": epmd,
        "RABBITMQ_NODENAME": f"chorale{port}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(free_port()),
        "RABBITMQ_MNESIA_BASE": str(folder / "rabbit"),
        "RABBITMQ_LOG_BASE": str(folder / "rabbit-log"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
    }
    quiet = subprocess.DEVNULL
    server = subprocess.Popen(
        [str(program)], env=environment, stdout=quiet, stderr=quiet, start_new_session=True
    )
    try:
        wait_until(lambda: answers("127.0.0.1", port), 60)
        yield f"amqp://guest:guest@127.0.0.1:{port}//"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        subprocess.run(["epmd", "-port", epmd, "-kill"], capture_output=True)
