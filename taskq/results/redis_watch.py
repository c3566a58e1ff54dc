"""Waits for results on Redis: one connection and one thread for all waiters of a process."""

import contextlib
import logging
import random
import select
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import redis

from taskq import clock
from taskq.errors import TaskqError
from taskq.results.base import is_terminal

log = logging.getLogger("taskq.results")

_REREAD_S: Final = 2.0
_LINGER_S: Final = 5.0
_FIRST_BACKOFF_S: Final = 0.05
_LAST_BACKOFF_S: Final = 0.5
_CHUNK: Final = 500

Callback = Callable[[bytes], None]


class RedisWatcher:
    """Subscribes to the channel of each watched id, and calls back when its record is final.

    An announcement only says that there is something to read, so one that is lost, repeated, or
    of another database costs at most a read. Every waiting id is read after its subscription is
    confirmed, after each reconnect, and every 2 s. The thread starts with the first watch and ends
    5 s after the last.
    """

    def __init__(
        self,
        open_connection: Callable[[], Any],
        fetch: Callable[[Sequence[str]], list[bytes | None]],
        channel_prefix: str,
    ) -> None:
        """Prepare; nothing is opened before the first watch.

        Args:
            open_connection: Makes a connection that has not connected yet.
            fetch: Returns each id's record or None.
            channel_prefix: What stands before the id in its channel's name.
        """
        self._open_connection = open_connection
        self._fetch = fetch
        self._prefix = channel_prefix
        self._lock = threading.Lock()
        self._callbacks: dict[str, list[Callback]] = {}
        self._changed: set[str] = set()
        self._thread: threading.Thread | None = None
        self._ends: tuple[socket.socket, socket.socket] | None = None
        self._connection: Any = None
        self._closed = False
        self._backoff_s = _FIRST_BACKOFF_S

    def watch(self, task_id: str, callback: Callback) -> Callable[[], None]:
        """Call back once with the final record; returns what ends the watch."""
        with self._lock:
            self._closed = False
            self._callbacks.setdefault(task_id, []).append(callback)
            self._changed.add(task_id)
            if self._thread is None:
                self._start()
            self._ring()

        def end() -> None:
            with self._lock:
                callbacks = self._callbacks.get(task_id, [])
                if callback in callbacks:
                    callbacks.remove(callback)
                    if not callbacks:
                        del self._callbacks[task_id]
                        self._changed.add(task_id)

        return end

    def close(self) -> None:
        """End the thread; who still waits is not called back."""
        with self._lock:
            self._closed = True
            self._callbacks.clear()
            thread = self._thread
            self._ring()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=1.0)

    def abandon(self) -> None:
        """Close what a fork has copied; in the child, where the thread does not exist."""
        for end in self._ends or ():
            end.close()
        if self._connection is not None:
            self._connection.disconnect()

    def _start(self) -> None:
        self._ends = socket.socketpair()
        for end in self._ends:
            end.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="taskq-results", daemon=True)
        self._thread.start()

    def _ring(self) -> None:
        # A full bell rings already.
        if self._ends is not None:
            with contextlib.suppress(BlockingIOError):
                self._ends[1].send(b"\0")

    def _run(self) -> None:
        while not self._ended():
            self._connection = connection = self._open_connection()
            try:
                connection.connect()
                _Session(self, connection).run()
            except (redis.RedisError, OSError, TaskqError) as error:
                if self._backoff_s == _FIRST_BACKOFF_S:
                    log.warning("retrying to wait for results error=%s", error)
                self._backoff_s = min(_LAST_BACKOFF_S, self._backoff_s * 2)
                time.sleep(self._backoff_s * random.uniform(0.5, 1.0))
            finally:
                connection.disconnect()

    def _ended(self) -> bool:
        with self._lock:
            if self._callbacks and not self._closed:
                return False
            self._thread = None
            self._changed.clear()
            for end in self._ends or ():
                end.close()
            self._ends = None
            return True

    def wait(self, descriptor: int, wait_s: float) -> None:
        """Wait until the descriptor can be read or the watched ids have changed."""
        if self._ends is None:
            return
        ear = self._ends[0]
        # Not select(): it fails in a process with more than 1024 open files.
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.register(ear, select.POLLIN)
        poll.poll(wait_s * 1000)
        with contextlib.suppress(BlockingIOError):
            ear.recv(4096)

    def take_changes(self) -> tuple[set[str], set[str], bool]:
        """Return ids to be watched, ids no longer watched, and whether anything is watched."""
        with self._lock:
            changed, self._changed = self._changed, set()
            wanted = {task_id for task_id in changed if task_id in self._callbacks}
            return wanted, changed - wanted, bool(self._callbacks)

    @property
    def closed(self) -> bool:
        """Whether `close` was called after the last watch."""
        return self._closed

    def waiting(self) -> set[str]:
        """Return all ids that are waited for."""
        with self._lock:
            return set(self._callbacks)

    def channel(self, task_id: str) -> str:
        """Return the channel on which an id's end is announced."""
        return self._prefix + task_id

    def task_id(self, channel: bytes) -> str:
        """Return the id whose channel it is."""
        return channel.decode()[len(self._prefix) :]

    def deliver(self, task_ids: Iterable[str]) -> None:
        """Read records and call back for those that are final."""
        ids = list(task_ids)
        for start in range(0, len(ids), _CHUNK):
            part = ids[start : start + _CHUNK]
            for task_id, record in zip(part, self._fetch(part), strict=True):
                if record is not None and is_terminal(record):
                    self._call_back(task_id, record)
        if ids and self._backoff_s > _FIRST_BACKOFF_S:
            self._backoff_s = _FIRST_BACKOFF_S
            log.info("waiting for results again")

    def _call_back(self, task_id: str, record: bytes) -> None:
        with self._lock:
            callbacks = self._callbacks.pop(task_id, [])
            self._changed.add(task_id)
        for callback in callbacks:
            try:
                callback(record)
            # A waiter's mistake must not leave all others waiting.
            except Exception:
                log.exception("callback failed task=%s", task_id)


class _Session:
    """One connection's time: what it is subscribed to, and what has to be read."""

    def __init__(self, watcher: RedisWatcher, connection: Any) -> None:
        self._watcher = watcher
        self._connection = connection
        self._subscribed: set[str] = set()

    def run(self) -> None:
        """Serve until nobody has waited for a while; raises when the connection fails."""
        self._watcher.take_changes()
        self._subscribe(self._watcher.waiting())
        reread_at = clock.monotonic_s() + _REREAD_S
        idle_since: float | None = None
        while True:
            wanted, dropped, anything = self._watcher.take_changes()
            now = clock.monotonic_s()
            idle_since = None if anything else idle_since or now
            if self._watcher.closed or (idle_since and now - idle_since > _LINGER_S):
                return
            # A second waiter for an id gets no confirmation that would have it read.
            to_read = wanted & self._subscribed
            self._subscribe(wanted - self._subscribed)
            self._unsubscribe(dropped & self._subscribed)
            to_read |= self._receive(0.0 if to_read else max(0.0, reread_at - now))
            if clock.monotonic_s() >= reread_at:
                to_read = self._watcher.waiting()
                reread_at = clock.monotonic_s() + _REREAD_S
            self._watcher.deliver(to_read)

    def _subscribe(self, task_ids: set[str]) -> None:
        self._send("SUBSCRIBE", task_ids)
        self._subscribed |= task_ids

    def _unsubscribe(self, task_ids: set[str]) -> None:
        self._send("UNSUBSCRIBE", task_ids)
        self._subscribed -= task_ids

    def _send(self, command: str, task_ids: Iterable[str]) -> None:
        channels = [self._watcher.channel(task_id) for task_id in task_ids]
        for start in range(0, len(channels), _CHUNK):
            self._connection.send_command(command, *channels[start : start + _CHUNK])

    def _receive(self, wait_s: float) -> set[str]:
        """Return ids that were announced, or whose subscription was confirmed."""
        if not self._connection.can_read(0):
            # redis-py offers no way to wait for its socket and for something else.
            self._watcher.wait(self._connection._sock.fileno(), wait_s)
        to_read: set[str] = set()
        while self._connection.can_read(0):
            kind, channel, _ = self._connection.read_response()
            if kind != b"unsubscribe":
                to_read.add(self._watcher.task_id(channel))
        return to_read
