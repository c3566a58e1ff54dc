"""How the hub gets executors: from the template process, or (solo) a thread of its own process."""

import asyncio
import gc
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import msgpack

from taskq.app import TaskQ
from taskq.errors import ConfigError
from taskq.worker.manifest import Manifest, make_manifest
from taskq.worker.outbox import new_unpacker
from taskq.worker.slots import Slots, open_memory

_BUFFER_BYTES = 1 << 21
_END_S = 5.0
_WAIT_STEP_S = 0.005


@dataclass(slots=True)
class Launched:
    """A new executor, as the hub sees it.

    Attributes:
        sock: Socket to it.
        slots: Its slot memory.
        pid: Its process id; 0 for a thread of this process.
        pidfd: Descriptor that becomes readable at its death; -1 where there is none.
    """

    sock: socket.socket
    slots: Slots
    pid: int
    pidfd: int


class Launcher(Protocol):
    """Makes executors."""

    on_exit: Callable[[int, int], None]

    async def launch(self, pool: str, count: int) -> Launched:
        """Start an executor for so many tasks at once."""

    def close(self) -> None:
        """End what is left; executors end when their socket closes."""


def _socket_pair() -> tuple[socket.socket, socket.socket]:
    pair = socket.socketpair()
    for end in pair:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
    return pair


Serve = Callable[[socket.socket, int], NoReturn]


class _Template:
    """The template process, as its parent sees it."""

    def __init__(self, serve: Serve, control: socket.socket, ours: socket.socket) -> None:
        hub = os.getpid()
        # The collector would write to the shared pages.
        gc.collect()
        gc.freeze()
        self.pid = os.fork()
        if self.pid == 0:
            ours.close()
            serve(control, hub)
        self._code: int | None = None

    def wait(self, timeout_s: float) -> int | None:
        """Return the exit code, negative for a signal; None if it still lives by then."""
        deadline_s = time.monotonic() + timeout_s
        while self._code is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                # Somebody else in this process waited for all children.
                self._code = 0
                break
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > deadline_s:
                break
            else:
                time.sleep(_WAIT_STEP_S)
        return self._code

    def end(self, timeout_s: float) -> None:
        """Wait for its end, then enforce it."""
        if self.wait(timeout_s) is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait(timeout_s)


class TemplateLauncher:
    """Forks executors from a template process that has imported the app.

    Make it early: the template is a fork, which must not happen beside threads, and what is
    imported by then is shared with it.

    Attributes:
        pid: The template's process id.
        on_exit: Called with pid and wait status of each executor that ended.
        on_lost: Called when the template itself is gone.
    """

    def __init__(self, serve: Serve, place: str, name: str) -> None:
        """Start the template; it imports the app while the hub prepares itself.

        Args:
            serve: Be the template, given the socket to the hub and the hub's process id.
            place: Where the app is; see `taskq.loading.load_app`.
            name: Name of the worker.
        """
        self._control, theirs = socket.socketpair()
        with theirs:
            self._process = _Template(serve, theirs, self._control)
        self.pid = self._process.pid
        self.on_exit: Callable[[int, int], None] = lambda pid, status: None
        self.on_lost: Callable[[], None] = lambda: None
        self._unpacker = new_unpacker()
        self._fds: list[int] = []
        self._forked: asyncio.Queue[tuple[int, int]] = asyncio.Queue()
        self._lock = asyncio.Lock()
        self._control.sendall(msgpack.packb(("load", place, name)))

    def manifest(self, timeout_s: float = 120.0) -> Manifest:
        """Wait for the app to be imported and return its manifest; blocks.

        Raises:
            ConfigError: If it cannot be imported; `__notes__` holds the traceback.
        """
        while True:
            readable, _, _ = select.select([self._control], [], [], timeout_s)
            if not readable:
                raise ConfigError(f"importing the app takes longer than {timeout_s:g} s")
            data = self._control.recv(1 << 18)
            if not data:
                raise ConfigError(
                    "the process importing the app ended with "
                    f"exit status {self._process.wait(_END_S)} before it was ready"
                )
            self._unpacker.feed(data)
            for frame in self._unpacker:
                if frame[0] == "manifest":
                    return Manifest.from_wire(frame[1])
                error = ConfigError(frame[1])
                error.add_note(frame[2])
                raise error

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Listen to the template on the hub's loop."""
        loop.add_reader(self._control, self._read, loop)

    def _read(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            data, fds, _flags, _address = socket.recv_fds(
                self._control, 1 << 16, 16, socket.MSG_DONTWAIT
            )
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        if not data:
            loop.remove_reader(self._control)
            self.on_lost()
            return
        self._fds += fds
        self._unpacker.feed(data)
        for frame in self._unpacker:
            if frame[0] == "forked":
                self._forked.put_nowait((frame[1], self._fds.pop(0) if self._fds else -1))
            elif frame[0] == "exited":
                self.on_exit(frame[1], frame[2])

    async def launch(self, pool: str, count: int) -> Launched:
        """Fork an executor for so many tasks at once."""
        ours, theirs = _socket_pair()
        memory = open_memory(count)
        try:
            async with self._lock:
                frame = msgpack.packb(("fork", pool, count))
                socket.send_fds(self._control, [frame], [theirs.fileno(), memory])
                pid, pidfd = await self._forked.get()
            return Launched(ours, Slots(memory, count), pid, pidfd)
        finally:
            theirs.close()
            os.close(memory)

    def close(self) -> None:
        """Close the line to the template, which ends it, and wait for it."""
        self._control.close()
        self._process.end(_END_S)


class LocalLauncher:
    """Gives the one executor of a solo worker: served by another thread of this process.

    Attributes:
        on_exit: Never called; the executor shares the hub's fate.
        ready: Set once `launched` holds what the serving thread needs.
    """

    def __init__(self, app: TaskQ) -> None:
        self._app = app
        self.on_exit: Callable[[int, int], None] = lambda pid, status: None
        self.ready = threading.Event()
        self.theirs: socket.socket | None = None
        self.memory = -1

    def manifest(self) -> Manifest:
        """Return the app's manifest."""
        return make_manifest(self._app)

    async def launch(self, pool: str, count: int) -> Launched:
        """Hand the executor's ends to the serving thread."""
        ours, self.theirs = _socket_pair()
        self.memory = open_memory(count)
        slots = Slots(self.memory, count)
        self.ready.set()
        return Launched(ours, slots, 0, -1)

    def close(self) -> None:
        """Let a serving thread that still waits go."""
        self.ready.set()


def describe_status(status: int) -> str:
    """Return a wait status in words, such as `killed by SIGKILL` or `exit status 1`."""
    if os.WIFSIGNALED(status):
        return f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
    return f"exit status {os.waitstatus_to_exitcode(status)}"


AnyLauncher = TemplateLauncher | LocalLauncher
Frame = list[Any]
