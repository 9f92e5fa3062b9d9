"""A temporary folder that goes with the process, and is made again where somebody has cleaned it away."""

from __future__ import annotations

import shutil
import tempfile
import threading
import weakref
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(eq=False)
class TemporaryFolder:
    """Opens nothing until it is used. May be used from several threads at once."""

    prefix: str
    _path: Path | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def path(self) -> Path:
        """The folder. Machines delete what has lain in theirs for days, and a board runs for months."""
        with self._lock:
            if self._path is None or not self._path.is_dir():
                self._path = Path(tempfile.mkdtemp(prefix=self.prefix))
                weakref.finalize(self, shutil.rmtree, self._path, ignore_errors=True)
            return self._path

    def known(self) -> Path | None:
        """The folder, if it was ever used and is there."""
        with self._lock:
            return self._path if self._path is not None and self._path.is_dir() else None
