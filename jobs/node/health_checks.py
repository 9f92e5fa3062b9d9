"""What is checked on a node; each check returns one sentence, or None when all is in order."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
from sqlalchemy import select

from infra.database import Database, now
from infra.errors import ServiceError, StoreError
from infra.store.base import Store
from infra.store.local import LocalStore
from jobs.farm import Farm, open_images
from jobs.formatting import duration, size
from jobs.node.health import Check
from render.launch.gpus import visible_gpus
from render.launch.group_directory import GroupDirectory

HOME_BYTES = 64 * 2**20
"""Free space that the home folder needs for logs and inputs."""
TEMPORARY_BYTES = 4 * 2**20
"""Free space that the temporary folder needs for requests and sockets."""
INODES = 64
"""Free inodes that both need; a disk of very many small files runs out of these first."""
MEMORY_BYTES = 256 * 2**20
"""Available memory below which nothing is started."""
MAX_SKEW_S = 30.0
"""Difference between the node's clock and the database's. Stores refuse signatures of wrong times, and the
ages of files decide what may be deleted."""
EVERY_S = {"home": 5.0, "temporary": 5.0, "memory": 5.0, "clock": 30.0, "gpu": 10.0, "store": 30.0}
"""Seconds between two runs of a check that passes."""
_WRITE_EVERY_S = 600.0
"""Seconds between two writes into a store that is not a folder; requests in between only read."""
_LONGEST_SOCKET = "events"
_LONGEST_PID = 7
_FULL = (errno.ENOSPC, errno.EDQUOT)
_CGROUP = Path("/sys/fs/cgroup")


def node_checks(farm: Farm, node: str, home: Path, gpus: int) -> dict[str, Check]:
    """The checks of a node. `gpus` is the number of GPUs that its slots need, 0 for a node of CPU ranks."""
    # The farm's own folder is made again; another one that is gone may be a disk that is not mounted.
    own = not farm.settings.store_url
    checks: dict[str, Check] = {
        **local_checks(home),
        "clock": partial(check_clock, farm.database),
        "store": StoreCheck(lambda: open_images(farm.settings), f"chorale-check/{node}", make_again=own),
    }
    return checks | ({"gpu": partial(check_gpus, gpus)} if gpus else {})


def local_checks(home: Path) -> dict[str, Check]:
    """The checks that ask nothing of other machines."""
    return {"home": partial(check_home, home), "temporary": check_temporary, "memory": check_memory}


def local_problem(home: Path) -> str | None:
    """The first problem that a local check finds now; raises nothing."""
    for name, check in local_checks(home).items():
        try:
            problem = check()
        except Exception as exc:
            problem = f"{name}: {type(exc).__name__}: {exc}"
        if problem is not None:
            return problem
    return None


def check_home(home: Path) -> str | None:
    """The home folder: made again if it is gone, writable, with some space."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        _write(home)
    except OSError as exc:
        if exc.errno not in _FULL:
            return f"home: {home} cannot be written ({exc.strerror}); correct it or set XDG_DATA_HOME"
        return _room_problem("home", home, HOME_BYTES) or f"home: {home} is full; make room"
    return _room_problem("home", home, HOME_BYTES)


def check_temporary() -> str | None:
    """The temporary folder: writable, with some space, its path short enough for the sockets of a group."""
    folder = Path(tempfile.gettempdir())
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        _write(folder)
        if (problem := _socket_problem(folder)) is not None:
            return problem
    except OSError as exc:
        if exc.errno not in _FULL:
            return f"temporary: {folder} cannot be written ({exc.strerror}); correct it or set TMPDIR"
        return (
            _room_problem("temporary", folder, TEMPORARY_BYTES) or f"temporary: {folder} is full; make room"
        )
    return _room_problem("temporary", folder, TEMPORARY_BYTES)


def _room_problem(check: str, folder: Path, least: int) -> str | None:
    """Bytes, and names of files, that a folder's disk has left. Raises `OSError`."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free, disk = shutil.disk_usage(there).free, os.statvfs(there)
    if free < least:
        return f"{check}: {folder} has {size(free)} free; make room for at least {size(least)}"
    # Some file systems have no fixed number of them, and tell none.
    if disk.f_files and disk.f_favail < INODES:
        fix = f"delete files on its disk, it needs {INODES}"
        return f"{check}: {folder} has {disk.f_favail} inodes free; {fix}"
    return None


def _socket_problem(folder: Path) -> str | None:
    directory = GroupDirectory()
    try:
        # The pid of a supervisor, which is in the name, may have more digits than ours.
        name = _LONGEST_SOCKET + "x" * (_LONGEST_PID - len(str(os.getpid())))
        with socket.socket(socket.AF_UNIX) as probe:
            probe.bind(str(directory.path / name))
    except OSError as exc:
        if "too long" not in str(exc):
            raise
        return f"temporary: the path of {folder} is too long for a unix socket; set TMPDIR to a shorter one"
    finally:
        directory.close()
    return None


def check_memory() -> str | None:
    """Memory that is left to this machine, or to its container."""
    available = psutil.virtual_memory().available
    left = min(available, _cgroup_left(available))
    if left < MEMORY_BYTES:
        return f"memory: {size(left)} available; a rank needs at least {size(MEMORY_BYTES)} to start"
    return None


def _cgroup_left(otherwise: int) -> int:
    """What the container's limit leaves; pages of files that can be dropped count as free."""
    try:
        most = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
        lines = (line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        files = next((int(value) for name, value in lines if name == "inactive_file"), 0)
        return otherwise if most == "max" else int(most) - used + files
    except (OSError, ValueError):
        return otherwise


def check_clock(database: Database, clock: Callable[[], float] = time.time) -> str | None:
    """This machine's clock against the database's. A database that does not answer is told elsewhere."""
    try:
        with database.read() as connection:
            before = clock()
            moment: float = connection.execute(select(now())).scalar_one()
            after = clock()
    except ServiceError:
        return None
    skew = before - moment if moment < before else max(0.0, moment - after)
    if skew <= MAX_SKEW_S:
        return None
    which = "ahead of" if moment < before else "behind"
    return f"clock: {duration(skew)} {which} the database's; synchronize it, for instance with NTP"


def check_gpus(wanted: int) -> str | None:
    """All GPUs of the node's slots respond."""
    found = len(visible_gpus())
    return None if found >= wanted else f"gpu: {found} of {wanted} GPUs respond; see nvidia-smi"


class StoreCheck:
    """The farm's store takes and gives back a small file.

    A folder is written each time, other stores are now and then: each write costs, and leaves a version where
    a bucket keeps them.
    """

    def __init__(
        self,
        store: Callable[[], Store],
        key: str,
        *,
        make_again: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open, self._key, self._make_again, self._clock = store, key, make_again, clock
        self._write_at = float("-inf")
        self._seen = False

    def __call__(self) -> str | None:
        store = self._open()
        try:
            return self._folder_problem(store) or self._try(store)
        except StoreError as exc:
            self._write_at = float("-inf")
            return f"store: {exc}"

    def _folder_problem(self, store: Store) -> str | None:
        if self._make_again or not isinstance(store, LocalStore):
            return None
        if self._seen and not store.folder.is_dir():
            return f"store: {store.folder} is gone; mount it, or make it again"
        return None

    def _try(self, store: Store) -> str | None:
        if isinstance(store, LocalStore) or self._clock() >= self._write_at:
            store.put(self._key, b"chorale", "text/plain")
            read = store.get(self._key)
            store.delete(self._key)
            if read != b"chorale":
                return f"store: {store.url()} gives back other bytes than it was given"
            self._write_at = self._clock() + _WRITE_EVERY_S
        else:
            store.size(self._key)
        self._seen = True
        return None


def _write(folder: Path) -> None:
    """Write a small file into the folder, down to the disk, and remove it."""
    with tempfile.TemporaryFile(dir=folder, prefix=".chorale-check-") as file:
        file.write(bytes(4096))
        file.flush()
        os.fsync(file.fileno())
