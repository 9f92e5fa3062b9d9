"""Ranks that start before torchrun asks for them.

torchrun takes a second or two to import torch before it starts a rank, which then imports torch and diffusers
once more. So the launcher starts the ranks first, and they import while torchrun does. What torchrun starts
then is a stand-in, `python -m render.launch.preloaded_rank DESK`: it hands its environment (rank, world size, meeting
point) to the rank that is there already, and lives and ends with it. Where there is none any more, since
torchrun starts its ranks a second time, the stand-in becomes the rank itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

DOOR = "CHORALE_EARLY"
"""Environment variable of an early rank: the number of the listening socket that its stand-in comes to."""
_RANK = ["-m", "render.launch.rank"]


def preload_ranks(ranks: int, desk: Path) -> None:
    """Start so many ranks of a group on this machine; like all ranks, they die with this process."""
    for local_rank in range(ranks):
        with listening(desk, local_rank) as door:
            # Ours is closed at once: when the rank is gone, nobody is left to knock for.
            subprocess.Popen(
                [sys.executable, *_RANK, str(desk)],
                stdin=subprocess.DEVNULL,
                env=os.environ | {DOOR: str(door.fileno())},
                pass_fds=[door.fileno()],
                start_new_session=True,
            )


def listening(desk: Path, local_rank: int) -> socket.socket:
    """The socket to which the stand-in of a rank comes."""
    door = socket.socket(socket.AF_UNIX)
    door.bind(str(_door(desk, local_rank)))
    door.listen(1)
    return door


class PreloadedRank:
    """The rank's side: waits for the stand-in, takes its environment, and tells it how the rank ended."""

    def __init__(self, stand_in: socket.socket | None) -> None:
        self._stand_in = stand_in

    @classmethod
    def begin(cls, prepare: Callable[[], None]) -> PreloadedRank:
        """`prepare`, then wait for torchrun; does neither in a rank that torchrun has started."""
        number = os.environ.pop(DOOR, None)
        if number is None:
            return cls(None)
        prepare()
        with socket.socket(fileno=int(number)) as door:
            stand_in, _ = door.accept()
            # What torchrun starts next under this number shall not come here.
            os.unlink(door.getsockname())
        with stand_in.makefile("rb") as lines:
            os.environ.update(json.loads(lines.readline()))
        threading.Thread(target=_end_with, args=(stand_in,), daemon=True, name="stand-in").start()
        return cls(stand_in)

    def end(self, code: int) -> None:
        """Say how the rank ends; the process has to end right after."""
        if self._stand_in is not None:
            with contextlib.suppress(OSError):
                self._stand_in.sendall(str(code).encode())


def _end_with(stand_in: socket.socket) -> None:
    """torchrun ends its ranks by ending the stand-ins, which never say anything after the beginning."""
    with contextlib.suppress(OSError):
        stand_in.recv(1)
    os._exit(1)


def _door(desk: Path, local_rank: int) -> Path:
    return desk / f"rank-{local_rank}"


def main() -> None:
    """Be the stand-in of a rank that is there, or the rank."""
    desk = Path(sys.argv[1])
    with socket.socket(socket.AF_UNIX) as rank:
        try:
            rank.connect(str(_door(desk, int(os.environ["LOCAL_RANK"]))))
        except FileNotFoundError:
            os.execv(sys.executable, [sys.executable, *_RANK, str(desk)])
        except OSError:
            _be_killed()
        try:
            rank.sendall(json.dumps(dict(os.environ)).encode() + b"\n")
            code = rank.recv(16)
        except OSError:
            code = b""
    if not code:
        _be_killed()
    sys.exit(int(code))


def _be_killed() -> NoReturn:
    """The rank was killed; whoever looks at us shall see that."""
    os.kill(os.getpid(), signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    main()
