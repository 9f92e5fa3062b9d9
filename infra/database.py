"""The farm's database: SQLite in WAL mode embedded, PostgreSQL for a farm; the same statements on both.

Times are seconds since the epoch by the database's own clock (`now()`), so that nodes whose clocks differ
agree on leases.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from inspect import signature
from typing import Any

from sqlalchemy import URL, Connection, Double, Engine, Table, bindparam, create_engine, event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    DisconnectionError,
    IntegrityError,
    NoSuchModuleError,
    PendingRollbackError,
    ProgrammingError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from infra.database_url import parse_database_url, shown_database_url
from infra.errors import BadSetting, DatabaseUnreachable
from infra.settings import redact_url

_BUSY_S = 30.0
"""How long a writer of SQLite waits for another one."""
_POSTGRES: dict[str, Any] = {
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
_POSTGRES_LIMITS = {
    # A machine that loses power in the middle of a transaction must not hold the farm's locks for hours.
    "idle_in_transaction_session_timeout": "15s",
    "lock_timeout": "10s",
}
_READ_ONLY = "25006"
"""SQLSTATE of a server that only reads: one that is being replaced, or a replica."""
_STOPPED = frozenset({"57014", "55P03"})
"""SQLSTATEs of a statement that took too long, by itself or for the locks of others."""
_BUSY = ("took too long for a query", "it is slow or busy, try again later")
_DIAGNOSES: tuple[tuple[str, str, frozenset[str], frozenset[int], tuple[str, ...]], ...] = (
    (*_BUSY, _STOPPED, frozenset({sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_BUSY}), ()),
    (
        "was asked for the same rows by others at once",
        "try again",
        frozenset({"40P01", "40001"}),
        frozenset(),
        (),
    ),
    (
        "has no space on its disk",
        "free some",
        frozenset({"53100"}),
        frozenset({sqlite3.SQLITE_FULL}),
        ("No space left on device",),
    ),
    (
        "has no connection left",
        "raise its max_connections, or the limit of the role",
        frozenset({"53300"}),
        frozenset(),
        ("too many clients", "remaining connection slots", "too many connections"),
    ),
    (
        "only reads",
        "it may be a replica, or about to be replaced; if it stays so, check CHORALE_DATABASE_URL",
        frozenset({_READ_ONLY}),
        frozenset({sqlite3.SQLITE_READONLY}),
        (),
    ),
    (
        "is damaged",
        "restore a backup of it",
        frozenset({"XX001", "XX002"}),
        frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}),
        (),
    ),
)
"""What can be the matter with a database, and what to do: by SQLSTATE, by SQLite's code, or by the text of an
error, as of connections that are refused, which have no SQLSTATE."""
_LOOK_INSTRUCTIONS = 100_000
"""SQLite looks at the clock after so many instructions of its machine, some milliseconds."""
_ABSENT = frozenset({"42501", "42P01", "3D000", "3F000", "42703"})
"""SQLSTATEs of statements that are right, in a database that is not (yet): no privilege, table, database,
schema or column, as while a backup is restored."""


class now(FunctionElement[float]):
    """The database's clock, in seconds since the epoch; it advances within a transaction."""

    type = Double()
    inherit_cache = True


@compiles(now, "sqlite")
def _now_in_sqlite(element: Any, compiler: Any, **options: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now, "postgresql")
def _now_in_postgresql(element: Any, compiler: Any, **options: Any) -> str:
    return "extract(epoch from clock_timestamp())::float8"


class Database:
    """Connections to one database. Opens nothing until it is used.

    A statement that takes longer than `longest_statement_s` is stopped, and raises `DatabaseUnreachable`:
    for a server, where one slow query after the other would hold all threads. None for no limit.
    """

    def __init__(self, url: str, *, longest_statement_s: float | None = None) -> None:
        try:
            self.engine = _engine(url, longest_statement_s)
        except (ArgumentError, NoSuchModuleError, ImportError) as exc:
            raise BadSetting(
                "database_url",
                redact_url(url),
                "is not a database URL; use sqlite:///farm.db or postgresql://user@host/name",
            ) from exc

    def __repr__(self) -> str:
        return f"Database({self.shown_url!r})"

    @property
    def shown_url(self) -> str:
        """The URL without its secrets."""
        return shown_database_url(self.engine.url)

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that may write: committed as a whole, or not at all."""
        with _translated(self), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that only reads, and so never waits for a writer."""
        with _translated(self), self.engine.connect() as connection:
            yield connection.execution_options(chorale_reads_only=True)

    def close(self) -> None:
        self.engine.dispose()


def built_once(build: Callable[..., Any]) -> Callable[..., tuple[Any, dict[str, Any]]]:
    """A statement that is built at its first use; later only its arguments are bound.

        @built_once
        def _named(job: Any) -> Any:
            return select(jobs).where(jobs.c.id == job)

        connection.execute(*_named(job="3fa9"))

    Building it takes longer than a nearby database takes to answer. The arguments are placeholders: `build`
    must not inspect them.
    """
    names = tuple(signature(build).parameters)

    @cache
    def statement() -> Any:
        return build(**{name: bindparam(f"given_{name}") for name in names})

    def filled(**values: Any) -> tuple[Any, dict[str, Any]]:
        return statement(), {f"given_{name}": values[name] for name in names}

    return filled


def insert_unless_there(connection: Connection, table: Table) -> Any:
    """INSERT ... ON CONFLICT DO NOTHING, in the dialect of the connection."""
    return _insert(connection, table).on_conflict_do_nothing()


def insert_or_change(connection: Connection, table: Table, changes: dict[str, Any]) -> Any:
    """INSERT ... ON CONFLICT (primary key) DO UPDATE with `changes`, in the dialect of the connection."""
    return _insert(connection, table).on_conflict_do_update(index_elements=table.primary_key, set_=changes)


def _insert(connection: Connection, table: Table) -> Any:
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    return dialect.insert(table)


def _engine(text: str, longest_s: float | None) -> Engine:
    url = parse_database_url(text)
    if url.get_backend_name() != "sqlite":
        engine = create_engine(url, pool_pre_ping=True, connect_args=_postgres_arguments(longest_s))
        # Before SQLAlchemy inspects the server: it fails on the encodings that are refused here.
        event.listen(engine, "connect", partial(_refuse_other_encodings, engine), insert=True)
        event.listen(engine, "handle_error", _leave_read_only_server)
        return engine
    engine = create_engine(url, connect_args={"timeout": _BUSY_S})
    event.listen(engine, "connect", partial(_prepare_sqlite, url))
    event.listen(engine, "checkout", partial(_check_sqlite_file, url))
    event.listen(engine, "begin", _begin_sqlite)
    if longest_s is not None:
        event.listen(engine, "before_cursor_execute", partial(_limit_sqlite, longest_s))
    return engine


def _postgres_arguments(longest_s: float | None) -> dict[str, Any]:
    limits = dict(_POSTGRES_LIMITS)
    if longest_s is not None:
        limits["statement_timeout"] = f"{longest_s * 1000:.0f}ms"
    return _POSTGRES | {"options": " ".join(f"-c {name}={value}" for name, value in limits.items())}


def _limit_sqlite(longest_s: float, connection: Any, cursor: sqlite3.Cursor, *_: object) -> None:
    """What `statement_timeout` is for PostgreSQL; time in which others write is not counted."""
    end = time.monotonic() + longest_s
    cursor.connection.set_progress_handler(lambda: time.monotonic() > end, _LOOK_INSTRUCTIONS)


def _refuse_other_encodings(engine: Engine, connection: Any, record: object) -> None:
    """Prompts and names are in all languages; a database with another encoding cannot hold some of them."""
    encoding = connection.info.parameter_status("server_encoding")
    if encoding not in (None, "UTF8"):
        fix = "create one for the farm with: createdb --encoding UTF8 --template template0 NAME"
        raise BadSetting(
            "database_url", shown_database_url(engine.url), f"has the encoding {encoding}; {fix}"
        )


def _leave_read_only_server(context: ExceptionContext) -> None:
    """Connect anew after this error: behind the same name there may be a server that writes by now."""
    if getattr(context.original_exception, "sqlstate", None) == _READ_ONLY:
        context.is_disconnect = True


def _prepare_sqlite(url: URL, connection: sqlite3.Connection, record: Any) -> None:
    # `_begin_sqlite` begins transactions; the driver would begin them too late.
    connection.isolation_level = None
    _use_wal(connection)
    for pragma in ("synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")
    record.info["file"] = _file_identity(url)


def _check_sqlite_file(url: URL, connection: object, record: Any, proxy: object) -> None:
    """Connect anew where the file was deleted or replaced: the old one is open, but nobody else sees it."""
    if record.info.get("file") != _file_identity(url):
        raise DisconnectionError("the file was replaced")


def _file_identity(url: URL) -> tuple[int, int] | None:
    try:
        found = os.stat(url.database or "")
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _use_wal(connection: sqlite3.Connection) -> None:
    """SQLite does not wait for the lock here, so two processes that open a new database would collide."""
    end = time.monotonic() + _BUSY_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > end:
                raise
        time.sleep(0.05)


def _begin_sqlite(connection: Connection) -> None:
    # A writer takes the lock at once: one that reads first and then writes would fail instead of waiting.
    reads_only = connection.get_execution_options().get("chorale_reads_only", False)
    connection.exec_driver_sql("BEGIN" if reads_only else "BEGIN IMMEDIATE")


@contextmanager
def _translated(database: Database) -> Iterator[None]:
    """The one place where the driver's errors are translated.

    Errors of the statement or of its values pass unchanged: they are mistakes in this program. All others
    are the database's, also those that no one has seen yet.
    """
    try:
        yield
    except DBAPIError as exc:
        mistaken = isinstance(exc, (ProgrammingError, IntegrityError, DataError))
        absent = getattr(exc.orig, "sqlstate", None) in _ABSENT
        if mistaken and not absent and not exc.connection_invalidated:
            raise
        raise _unreachable(database, exc.orig) from exc
    except (PoolTimeout, DisconnectionError, PendingRollbackError) as exc:
        raise _unreachable(database, exc) from exc


def _unreachable(database: Database, cause: BaseException | None) -> DatabaseUnreachable:
    reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
    problem, fix = _diagnosis(cause)
    return DatabaseUnreachable(f"the database {database.shown_url} {problem} ({reason}); {fix}")


def _diagnosis(cause: BaseException | None) -> tuple[str, str]:
    """What is the matter with a database, and what to do about it."""
    state, code = getattr(cause, "sqlstate", None), getattr(cause, "sqlite_errorcode", None)
    # Extended codes of SQLite hold the plain one in their lowest byte.
    code = None if code is None else code & 0xFF
    for problem, fix, states, codes, texts in _DIAGNOSES:
        if state in states or code in codes or any(text in str(cause) for text in texts):
            return problem, fix
    return "does not answer", "check CHORALE_DATABASE_URL"
