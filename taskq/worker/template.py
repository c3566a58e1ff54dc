"""The template process: imports the app once, and forks executors from that warm state.

It is itself a fork of the hub's process, made before that imports what only a hub needs, and speaks
msgpack frames with it over a Unix socket; descriptors travel beside them. Hub to template: `load`
(app, name, imports), `fork` (pool, slots) with the executor's socket and slot memory. Template to
hub: `manifest` or `failed`, `forked` with a pid and a pidfd, `exited` with pid and wait status.
When the hub is gone, so are template and executors.
"""

import ctypes
import faulthandler
import gc
import os
import select
import signal
import socket
import sys
import traceback
from typing import Any, NoReturn

import msgpack

from taskq.app import TaskQ
from taskq.errors import ConfigError
from taskq.loading import load_app
from taskq.worker.async_executor import AsyncExecutor
from taskq.worker.executor import Executor
from taskq.worker.manifest import make_manifest
from taskq.worker.outbox import new_unpacker
from taskq.worker.registry import AppRegistry
from taskq.worker.slots import Slots

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int) -> None:
    """Ask the kernel for SIGKILL when the parent dies, and check that it lives (Linux only)."""
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        # It died before the request: the signal will never come.
        os._exit(0)


def quiet_signals() -> None:
    """Leave the terminal's and the supervisor's signals to the hub.

    Handlers, not SIG_IGN: programs that tasks start would inherit ignored signals.
    """

    def pass_over(_signal: int, _frame: object) -> None:
        return

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP, signal.SIGTSTP):
        signal.signal(number, pass_over)


def run_executor(
    app: TaskQ, pool: str, count: int, name: str, sock: socket.socket, memory: int
) -> None:
    """Serve as an executor until the hub says stop.

    Args:
        app: The imported app.
        pool: `process`, `thread`, `asyncio` or `solo`.
        count: Tasks at once.
        name: Name of the worker.
        sock: Socket to the hub.
        memory: Descriptor of the slot memory; closed here.
    """
    slots = Slots(memory, count)
    os.close(memory)
    registry = AppRegistry(app)
    if pool == "asyncio":
        AsyncExecutor(sock, slots, registry, name).serve()
    else:
        Executor(sock, slots, registry, name).serve()


class Template:
    """The forking loop."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._unpacker = new_unpacker()
        self._fds: list[int] = []
        self._children: dict[int, int] = {}
        self._app: TaskQ | None = None
        self._name = ""
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)

    def serve(self) -> None:
        """Answer the hub until it closes the line."""
        while True:
            # Without pidfds (not Linux) children are looked after every half second.
            for fd, _event in self._poll.poll(None if hasattr(os, "pidfd_open") else 500):
                if fd != self._control.fileno():
                    continue
                data, fds, _flags, _address = socket.recv_fds(self._control, 1 << 16, 16)
                if not data:
                    return
                self._fds += fds
                self._unpacker.feed(data)
                for frame in self._unpacker:
                    self._take(frame)
            self._reap()

    def _send(self, frame: tuple[Any, ...], fds: list[int] | None = None) -> None:
        data = msgpack.packb(frame)
        sent = socket.send_fds(self._control, [data], fds or [])
        # The hub may close the line on the last byte it waits for; even an empty send would raise.
        if sent < len(data):
            self._control.sendall(data[sent:])

    def _take(self, frame: list[Any]) -> None:
        if frame[0] == "load":
            self._load(*frame[1:])
        elif frame[0] == "fork":
            sock_fd, memory = self._fds[:2]
            del self._fds[:2]
            self._fork(frame[1], frame[2], sock_fd, memory)

    def _load(self, place: str, name: str) -> None:
        self._name = name
        try:
            app = load_app(place)
            manifest = make_manifest(app)
        except ConfigError as error:
            cause = error.__cause__ or error
            text = "".join(traceback.format_exception(cause))
            self._send(("failed", str(error), text))
            return
        app.close()
        self._app = app
        # Forked children share these pages as long as nobody writes to them; the collector would.
        gc.collect()
        gc.freeze()
        self._send(("manifest", manifest.to_wire()))

    def _fork(self, pool: str, count: int, sock_fd: int, memory: int) -> None:
        parent = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            self._become_executor(pool, count, sock_fd, memory, parent)
        os.close(sock_fd)
        os.close(memory)
        if hasattr(os, "pidfd_open"):
            # Opened before the child can be reaped, so it can name no other process.
            pidfd = os.pidfd_open(pid)
            self._children[pid] = pidfd
            self._poll.register(pidfd, select.POLLIN)
            self._send(("forked", pid), [pidfd])
        else:
            self._children[pid] = -1
            self._send(("forked", pid))

    def _become_executor(
        self, pool: str, count: int, sock_fd: int, memory: int, parent: int
    ) -> NoReturn:
        code = 1
        try:
            die_with_parent(parent)
            self._control.close()
            for pidfd in self._children.values():
                if pidfd >= 0:
                    os.close(pidfd)
            faulthandler.register(signal.SIGUSR1, all_threads=True)
            if self._app is not None:
                sock = socket.socket(fileno=sock_fd)
                run_executor(self._app, pool, count, self._name, sock, memory)
                self._app.close()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            # Not sys.exit: the template's own exit handlers and threads are not this process's.
            os._exit(code)

    def _reap(self) -> None:
        for pid, pidfd in list(self._children.items()):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                del self._children[pid]
                if pidfd >= 0:
                    self._poll.unregister(pidfd)
                    os.close(pidfd)
                self._send(("exited", pid, status))


def serve(control: socket.socket, hub_pid: int) -> NoReturn:
    """Be the template, in a process just forked from the hub's, and end with it.

    Args:
        control: Socket to the hub.
        hub_pid: The hub's process id.
    """
    code = 1
    try:
        quiet_signals()
        die_with_parent(hub_pid)
        faulthandler.enable()
        faulthandler.register(signal.SIGUSR1, all_threads=True)
        # A terminal's input is no task's.
        with open(os.devnull) as nothing:
            os.dup2(nothing.fileno(), 0)
        Template(control).serve()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # Not sys.exit: what the hub's command still has to do is not this process's.
        os._exit(code)
