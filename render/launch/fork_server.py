"""The process that the ranks of a node are forked from: `python -m render.launch.fork_server DIRECTORY`.

A rank needs torch and diffusers, and importing them takes longer than rendering a small image. So the
launcher starts one process that imports them while torchrun gets ready, and that forks a rank whenever
torchrun starts one. What torchrun starts itself is a proxy (`fork_client.py`): it hands over the environment
that torchrun gave it (rank, world size, rendezvous), lives as long as its rank, and ends as the rank has
ended. All ranks of a node share the memory of what was imported, and a rank that is started again is there at
once. So is one that is added to a group that renders, by whoever has started the group (`added_ranks.py`).

The idea is that of multiprocessing's "forkserver" and of Android's zygote. The server has one thread, and
neither CUDA nor a model is open in it when it forks.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import random
import selectors
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from setproctitle import getproctitle, setproctitle

from render.launch.added_ranks import LOCAL_RANK, Order, joining_rank
from render.launch.epoch_client import has_epochs
from render.launch.epoch_server import EpochServer
from render.launch.group_directory import fork_socket_path
from render.launch.parent_death import PARENT, die_with_parent
from render.launch.rendezvous_config import JOINS
from render.launch.sinks import find_opener
from render.models.libraries import import_libraries

SOCKET = "CHORALE_FORK_SOCKET"
"""Environment variable of the server: the file descriptor of the socket that proxies connect to."""
_IMPORTED = {
    "render.engine": (),
    "render.models.sd": (),
    "render.models.sdxl": (),
    "diffusers": ("StableDiffusionPipeline", "UNet2DConditionModel", "AutoencoderKL"),
    "transformers": ("CLIPTextModel", "CLIPTokenizer"),
}
"""What takes ranks the most time to import, whatever the model's family. Attributes of diffusers and
transformers are imported when they are looked up."""


def start_fork_server(directory: Path) -> subprocess.Popen[bytes]:
    """Start the server of a group's ranks on this machine; it and its ranks die with this process."""
    with listen_for_proxies(directory) as server:
        return subprocess.Popen(
            [sys.executable, "-m", "render.launch.fork_server", str(directory)],
            stdin=subprocess.DEVNULL,
            env=os.environ | {SOCKET: str(server.fileno())},
            pass_fds=[server.fileno()],
            start_new_session=True,
        )


def listen_for_proxies(directory: Path) -> socket.socket:
    """The socket to which the proxies of a group's ranks connect, also before the server is ready."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(fork_socket_path(directory)))
    server.listen()
    return server


@dataclass
class _Rank:
    """A rank, for as long as its proxy is there; its process may be a successor."""

    environment: dict[str, str]
    proxy: socket.socket | None
    """None for a rank that was added, which torchrun does not know."""
    pid: int = 0
    proxy_ended: bool = False
    code: int = 0
    """Of the process that has ended."""
    code_instead: int | None = None
    """With which the proxy ends where the group has ended the rank."""

    @property
    def number(self) -> int:
        return int(self.environment["RANK"])


class ForkServer:
    """Forks a rank for every proxy that connects, and ends each of the two when the other has ended.

    A rank of a group that was killed is forked again instead, as long as others go on. More ranks are forked
    when somebody orders them.
    """

    def __init__(self, server: socket.socket, directory: Path, run_rank: Callable[[], int]) -> None:
        """`run_rank` is what a forked process does; it returns the exit code."""
        self._server, self._directory, self._run_rank = server, directory, run_rank
        self._ranks: dict[int, _Rank] = {}
        """By pid."""
        self._ended: dict[int, _Rank] = {}
        """By number: the ranks of which it is not decided yet whether they are replaced."""
        self._epochs: EpochServer | None = None
        self._environment: dict[str, str] = {}
        """That of torchrun's first rank."""
        self._joining: dict[str, _Rank] = {}
        """By local rank: those of torchrun's that have no number yet, on a node that joins a group."""
        self._orders: list[Order] = []
        """Those that came before it."""
        self._selector = selectors.DefaultSelector()

    def serve(self) -> NoReturn:
        """Fork until this process is killed."""
        woken, wakes = socket.socketpair()
        woken.setblocking(False)
        wakes.setblocking(False)
        # A child's end has to wake the selector, which the handler alone does not.
        signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._selector.register(self._server, selectors.EVENT_READ, self._accept)
        self._selector.register(woken, selectors.EVENT_READ, lambda: self._reap(woken))
        while True:
            tick_s = None if self._epochs is None else self._epochs.tick_s
            for key, _ in self._selector.select(tick_s):
                key.data()
            if self._epochs is not None and tick_s is not None:
                self._epochs.tick()

    def _accept(self) -> None:
        proxy, _ = self._server.accept()
        with proxy.makefile("rb") as lines:
            line = lines.readline()
        if not line:
            proxy.close()
            return
        values = json.loads(line)
        if (order := Order.found_in(values)) is not None:
            proxy.close()
            self._obey(order)
            return
        rank = _Rank(values, proxy)
        if self._epochs is None and has_epochs(rank.environment):
            self._epochs = EpochServer.open(self._directory, rank.environment, self._selector, self)
            self._environment = rank.environment
        # A proxy sends nothing after its environment: it is readable when it has ended.
        self._selector.register(proxy, selectors.EVENT_READ, lambda: self._end(rank))
        if self._epochs is not None and JOINS in rank.environment:
            # The group numbers it.
            self._joining[rank.environment[LOCAL_RANK]] = rank
            self._epochs.add([joining_rank(rank.environment)])
        else:
            self._fork(rank)
        orders, self._orders = self._orders, []
        for each in orders:
            self._obey(each)

    def _obey(self, order: Order) -> None:
        """Carry out an order, once there is a rank."""
        if self._epochs is None:
            self._orders.append(order)
            return
        if order.remove:
            self._epochs.remove(order.remove)
        if order.add:
            self._epochs.add(order.add)

    def _fork(self, rank: _Rank) -> None:
        server_pid = os.getpid()
        rank.pid = os.fork()
        if rank.pid == 0:
            self._be_rank(rank, server_pid)
        self._ranks[rank.pid] = rank
        if self._epochs is not None:
            self._epochs.start(rank.number, rank.pid)

    def _be_rank(self, rank: _Rank, parent: int) -> NoReturn:
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.setsid()
            die_with_parent(parent)
            # A proxy must see the server's end of its connection close, whichever rank is still there.
            for each in [rank, *self._ranks.values(), *self._ended.values(), *self._joining.values()]:
                if each.proxy is not None:
                    each.proxy.close()
            self._server.close()
            if self._epochs is not None:
                self._epochs.close_in_child()
            self._selector.close()
            os.environ.clear()
            os.environ.update(rank.environment)
            random.seed()
            code = self._run_rank()
        except Exception:
            traceback.print_exc()
        finally:
            # Not by way of the interpreter's end: there gloo's threads now and then abort a finished process.
            os._exit(code)

    def _end(self, rank: _Rank) -> None:
        """End the rank of a proxy that has ended."""
        assert rank.proxy is not None, "it has become readable"
        self._selector.unregister(rank.proxy)
        rank.proxy_ended = True
        # While it is not reaped, the pid is still that of the rank.
        if rank.pid in self._ranks:
            os.kill(rank.pid, signal.SIGKILL)

    def _reap(self, woken: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            woken.recv(4096)
        with contextlib.suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                pid, status = found
                self._take_end(self._ranks.pop(pid), os.waitstatus_to_exitcode(status))

    def _take_end(self, rank: _Rank, code: int) -> None:
        """Replace a rank that has ended, or end its proxy."""
        rank.code = code
        self._ended[rank.number] = rank
        if self._epochs is None:
            self.release(rank.number)
        else:
            self._epochs.end(rank.number, code, replaceable=not rank.proxy_ended)

    def replace(self, rank: int) -> None:
        """Fork the successor of a rank that has ended."""
        if self._ended[rank].proxy_ended:
            # torchrun has ended it meanwhile.
            self.release(rank)
        else:
            self._fork(self._ended.pop(rank))

    def add(self, rank: int, changes: Mapping[str, str]) -> None:
        """Fork one more rank of the group."""
        joins = self._joining.pop(changes[LOCAL_RANK], None)
        added = joins or _Rank(self._environment, None)
        added.environment = added.environment | dict(changes) | {"RANK": str(rank)}
        self._fork(added)

    def release(self, rank: int, code: int | None = None) -> None:
        """End the proxy of a rank that has ended; with a code of its own, or as the rank has."""
        ended = self._ended.pop(rank)
        if ended.proxy is None:
            return
        if not ended.proxy_ended:
            self._selector.unregister(ended.proxy)
        if code is None:
            code = ended.code if ended.code_instead is None else ended.code_instead
        with ended.proxy, contextlib.suppress(OSError):
            ended.proxy.sendall(str(code).encode())

    def end_all(self, code: int) -> None:
        """End the ranks that are left, since the group has ended; their proxies end with this code."""
        for rank in self._ranks.values():
            rank.code_instead = code
            os.kill(rank.pid, signal.SIGKILL)


def _run_rank() -> int:
    """What a forked process does."""
    import torch

    directory = sys.argv[1]
    arguments = ["-m", "render.launch.rank", directory]
    if torch.cuda._is_in_bad_fork():
        # A library has opened CUDA while it was imported: such a process cannot use it after a fork.
        os.execv(sys.executable, [sys.executable, *arguments])
    setproctitle(" ".join(["python", *arguments]))
    from render.launch.rank import run

    return run(Path(directory))


def main() -> NoReturn:
    """Import, and fork ranks until the launcher ends."""
    die_with_parent(int(os.environ[PARENT]))
    # Libraries that ask for a GPU while they are imported must not open it before the fork.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    # Ranks show their own command line in `ps` and nvidia-smi. Where it lies is looked up now, while the
    # environment behind it is as the kernel has laid it out; that environment stays as it is.
    os.environ["SPT_NOENV"] = "1"
    getproctitle()
    import_libraries()
    for module, names in _IMPORTED.items():
        loaded = importlib.import_module(module)
        for name in names:
            getattr(loaded, name)
    find_opener("file")
    # What is collected never again is not written to, so its pages stay shared.
    gc.collect()
    gc.freeze()
    server = socket.socket(fileno=int(os.environ.pop(SOCKET)))
    ForkServer(server, Path(sys.argv[1]), _run_rank).serve()


if __name__ == "__main__":
    main()
