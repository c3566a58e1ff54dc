"""The hub's side of one executor: its window, its socket, its death."""

import asyncio
import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgpack

from taskq.worker.endings import Ending
from taskq.worker.held import Held
from taskq.worker.launcher import Launched
from taskq.worker.outbox import new_unpacker, unpack_outcome


class Child:
    """One executor as the hub sees it.

    Attributes:
        pid: Its process id; 0 for a thread of the hub's process.
        count: Tasks it runs at once.
        held: Deliveries in its window, by tag.
        ready: Whether it said hello and takes work.
        retiring: Whether it gets no further work.
        taking_back: Whether it was asked to give back what has not started.
        given: How many tasks it has been given in its life.
        slots: What it runs now.
        on_told: Called with the number of dead letters whose listeners have returned.
        deaf: Whether it has not answered the last ping.
        quarantined: Tags whose hard limit passed and that may run for ever.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        launched: Launched,
        count: int,
        on_outcomes: Callable[["Child", list[tuple[Held, Ending]]], None],
        on_back: Callable[["Child", list[Held]], None],
        on_hello: Callable[["Child"], None],
        on_death: Callable[["Child"], None],
    ) -> None:
        self.pid = launched.pid
        self.slots = launched.slots
        self.count = count
        self.held: dict[int, Held] = {}
        self.ready = False
        self.retiring = False
        self.taking_back = False
        self.dead = False
        self.given = 0
        self.started_s = time.monotonic()
        self.deaf = False
        self.quarantined: set[int] = set()
        self._loop = loop
        self._sock = launched.sock
        self._pidfd = launched.pidfd
        self._sock.setblocking(False)
        self._unpacker = new_unpacker()
        self._unsent: deque[bytes] = deque()
        self._on_outcomes = on_outcomes
        self._on_back = on_back
        self._on_hello = on_hello
        self._on_death = on_death
        self.on_told: Callable[[int], None] = lambda number: None
        loop.add_reader(self._sock, self._read)
        if self._pidfd >= 0:
            # Not end of file: siblings and programs that tasks start may hold copies of the socket.
            loop.add_reader(self._pidfd, self.died)

    def give(self, batch: list[Held]) -> None:
        """Put deliveries into its window."""
        for held in batch:
            self.reserve(held)
        self.run(batch)

    def reserve(self, held: Held) -> None:
        """Keep a place in its window for a delivery; `run` or `release` must follow."""
        held.child = self
        self.held[held.tag] = held
        self.given += 1

    def release(self, held: Held) -> None:
        """Give up a place that was kept."""
        held.child = None
        if self.held.pop(held.tag, None) is not None:
            self.given -= 1

    def run(self, batch: list[Held]) -> None:
        """Start what has a place in its window."""
        self._send("run", [held.item() for held in batch])

    def take_back(self) -> None:
        """Ask for everything that has not started."""
        if not self.taking_back and not self.dead:
            self.taking_back = True
            self._send("back")

    def drop(self) -> list[Held]:
        """Return what it holds, and take no word of it from now on."""
        dropped = list(self.held.values())
        self.held.clear()
        return dropped

    def cancel(self, tags: list[int]) -> None:
        """Interrupt running tasks."""
        self._send("cancel", tags)

    def tell_dead(self, number: int, parts: Sequence[Any]) -> None:
        """Have the app's listeners called for dead letters; `on_told` gets the number then."""
        self._send("dead", number, parts)

    def revoke(self, tags: list[int], *, by_force: bool) -> None:
        """Tell cancelled tasks, or raise TaskCancelled in them wherever they are."""
        self._send("revoke", tags, by_force)

    def ping(self) -> None:
        """Ask for a sign of life; `deaf` until it comes."""
        self.deaf = True
        self._send("ping")

    def stop(self) -> None:
        """Ask it to end when what it holds is done."""
        self.retiring = True
        self._send("stop")

    def kill(self) -> None:
        """End the process at once; its death is seen as any other."""
        if self.pid and not self.dead:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, 9)

    def died(self) -> None:
        """Take in its last words, then report the death; once."""
        if self.dead:
            return
        self._read()
        self.dead = True
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
        self._on_death(self)
        self._sock.close()
        self.slots.close()

    def _send(self, *frame: Any) -> None:
        if self.dead:
            return
        data = msgpack.packb(frame)
        if not self._unsent:
            data = self._write(data)
        if data:
            if not self._unsent:
                self._loop.add_writer(self._sock, self._write_more)
            self._unsent.append(data)

    def _write(self, data: bytes) -> bytes:
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            return data
        except OSError:
            # It is gone; its death arrives by its own way.
            return b""
        return data[sent:]

    def _write_more(self) -> None:
        while self._unsent:
            rest = self._write(self._unsent[0])
            if rest:
                self._unsent[0] = rest
                return
            self._unsent.popleft()
        self._loop.remove_writer(self._sock)

    def _read(self) -> None:
        while True:
            try:
                data = self._sock.recv(1 << 20)
            except (BlockingIOError, OSError):
                return
            if not data:
                if self._pidfd < 0 and not self.dead:
                    self._loop.call_soon(self.died)
                self._loop.remove_reader(self._sock)
                return
            self._unpacker.feed(data)
            for frame in self._unpacker:
                self._take(frame)
            if len(data) < 1 << 18:
                return

    def _done(self, outcomes: list[Any]) -> None:
        finished = []
        for parts in outcomes:
            tag, ending = unpack_outcome(parts)
            held = self.held.pop(tag, None)
            if held is not None:
                finished.append((held, ending))
        self._on_outcomes(self, finished)

    def _take(self, frame: list[Any]) -> None:
        kind = frame[0]
        if kind == "done":
            self._done(frame[1])
        elif kind == "back":
            self.taking_back = False
            returned = [self.held.pop(tag) for tag in frame[1] if tag in self.held]
            self.given -= len(returned)
            for held in returned:
                held.child = None
            self._on_back(self, returned)
        elif kind == "told":
            self.on_told(frame[1])
        elif kind == "said":
            said = self.held.get(frame[1])
            if said is not None:
                said.said = frame[2:]
        elif kind == "pong":
            self.deaf = False
        elif kind == "hello":
            self.ready = True
            self._on_hello(self)
