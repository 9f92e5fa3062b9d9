"""Faults of chaos with which outside tests found something, or that resemble those."""

from __future__ import annotations

import contextlib
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import delete, select, update

from infra.database import Database
from jobs.db.tables import attempts, members, nodes
from tests.support.machines import Machines
from tests.support.services import Postgres


@contextlib.contextmanager
def _full(disk: Path) -> Iterator[None]:
    """Not a byte is left on a disk."""
    ballast = disk / "ballast"
    try:
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(1 << 16))
        yield
    finally:
        ballast.unlink(missing_ok=True)


class Findings:
    """They strike a farm of `tests.support.chaos`."""

    farm: Machines
    postgres: Postgres
    store: Path
    disk: Path
    """The database's."""
    draw: random.Random

    def _pass(self, seconds: float) -> None:
        """Let time go by, and undo what is due."""
        raise NotImplementedError

    def finding_database_only_reads_for_12_s(self) -> bool:
        """As while a replica is promoted. Before, it ended the heartbeats, and two ranks ran on one slot."""
        self._only_reads("on")
        self._pass(12)
        self._only_reads("off")
        return True

    def finding_row_of_an_idle_node_deleted(self) -> bool:
        """As when an older snapshot is restored. Before, the node never registered again.

        All nodes of a busy farm have work, so one is drained first.
        """
        name = self._any_name()
        self._set_draining(name, True)
        gone = self._until(lambda: self._delete_if_idle(name), 90)
        back = gone and self._until(lambda: name in self._names(), 120)
        assert back or not gone, f"{name} did not register again"
        self._set_draining(name, False)
        return gone

    def _any_name(self) -> str:
        return self.draw.choice(self._names())

    def _names(self) -> list[str]:
        with self._write() as connection:
            return sorted(connection.execute(select(nodes.c.name)).scalars())

    def _set_draining(self, name: str, draining: bool) -> None:
        with self._write() as connection:
            connection.execute(update(nodes).where(nodes.c.name == name).values(draining=draining))

    def _delete_if_idle(self, name: str) -> bool:
        running = select(members.c.node).join(attempts, attempts.c.id == members.c.attempt)
        with self._write() as connection:
            busy = running.where(attempts.c.ended.is_(None), members.c.node == name)
            if connection.execute(busy).first() is not None:
                return False
            connection.execute(delete(members).where(members.c.node == name))
            connection.execute(delete(nodes).where(nodes.c.name == name))
        return True

    def _until(self, holds: Callable[[], bool], seconds: int) -> bool:
        """Let time go by until something holds; False if it does not within about so long."""
        for _ in range(seconds):
            if holds():
                return True
            self._pass(1)
        return False

    def finding_home_deleted(self) -> bool:
        """Before, a node whose home was gone stayed up and swallowed jobs."""
        shutil.rmtree(self.farm.home / "chorale", ignore_errors=True)
        return True

    def finding_database_stops_to_answer_for_8_s(self) -> bool:
        """Its processes stand still, and its connections stay open."""
        self.postgres.freeze()
        self._pass(8)
        self.postgres.freeze(off=True)
        return True

    def finding_database_refuses_connections_for_10_s(self) -> bool:
        """As one that has none left: those that are open end, and no other one begins."""
        with self._other_database() as connection:
            connection.execute("alter database postgres with allow_connections false")
            ended = "select pg_terminate_backend(pid) from pg_stat_activity where datname = 'postgres'"
            connection.execute(ended)
            self._pass(10)
            connection.execute("alter database postgres with allow_connections true")
        return True

    def finding_database_locked_for_14_s(self) -> bool:
        """As by somebody's VACUUM FULL: longer than any statement waits for a lock."""
        with psycopg.connect(self.postgres.url) as connection:
            connection.execute("lock table jobs in access exclusive mode")
            self._pass(14)
        return True

    def finding_disk_of_the_database_full_for_12_s(self) -> bool:
        """PostgreSQL ends when it cannot write its log; it is started again once there is room."""
        with _full(self.disk):
            self._pass(12)
        self._revive_database()
        return True

    def finding_disk_of_the_store_full_for_12_s(self) -> bool:
        with _full(self.store):
            self._pass(12)
        return True

    def _revive_database(self) -> None:
        """Start it as often as it takes: one that is about to end still looks alive."""
        for _ in range(60):
            with contextlib.suppress(psycopg.Error), psycopg.connect(self.postgres.url):
                return
            if not self.postgres.running():
                with contextlib.suppress(subprocess.CalledProcessError):
                    self.postgres.start()
            self._pass(1)
        raise AssertionError("the database does not come back")

    def _other_database(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.postgres.url.replace("/postgres", "/template1"), autocommit=True)

    def _only_reads(self, switch: str) -> None:
        with psycopg.connect(self.postgres.url, autocommit=True) as connection:
            connection.execute("set default_transaction_read_only = off")
            connection.execute(f"alter system set default_transaction_read_only = {switch}")
            connection.execute("select pg_reload_conf()")

    @contextlib.contextmanager
    def _write(self) -> Iterator[Any]:
        database = Database(self.postgres.url)
        try:
            with database.write() as connection:
                yield connection
        finally:
            database.close()
