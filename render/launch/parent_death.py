"""A child dies with its parent: no orphan keeps a GPU."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PARENT = "CHORALE_PARENT"
"""Environment variable of a rank: the pid of the torchrun that it must not outlive."""
_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int | None = None) -> None:
    """Ask the kernel to kill this process when its parent ends (Linux; elsewhere does nothing).

    `parent` is the expected parent's pid: if it has ended already, the signal would never come.
    """
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
