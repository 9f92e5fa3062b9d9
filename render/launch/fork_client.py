"""What torchrun starts in place of a rank: `python -m render.launch.fork_client DIRECTORY`.

The fork server of the group forks the rank itself (`fork_server.py`); the proxy stands for it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import NoReturn

from render.launch.group_directory import fork_socket_path


def main() -> NoReturn:
    """Have a rank forked, wait for its end, and end as it did: with its exit code or by its signal."""
    with socket.socket(socket.AF_UNIX) as rank:
        try:
            rank.connect(str(fork_socket_path(Path(sys.argv[1]))))
            rank.sendall(json.dumps(dict(os.environ)).encode() + b"\n")
            code = rank.recv(16)
        except OSError:
            code = b""
    # Without a code, the server was killed, and its ranks with it.
    ended = int(code) if code else -signal.SIGKILL
    if ended < 0:
        os.kill(os.getpid(), -ended)
    sys.exit(ended)


if __name__ == "__main__":
    main()
