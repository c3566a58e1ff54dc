"""A TCP proxy that does what networks do: cut, fall silent in one or both directions, slow down."""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

from taskq.errors import ConfigError

_CHUNK: Final = 65536
_NOW_RESET: Final = struct.pack("ii", 1, 0)
_CALL_TIMEOUT_S: Final = 30.0
_HEARTBEAT: Final = "heartbeat=4"
_PORTS: Final = {"amqp": 5672, "redis": 6379}


class Proxy:
    """Passes connections on.

    Attributes:
        port: Where it listens, on 127.0.0.1.
        accepted: How many connections it has taken.
    """

    def __init__(self, target_port: int, target_host: str = "127.0.0.1") -> None:
        """Listen; `close` ends it.

        Args:
            target_port: Port of the server.
            target_host: Its host.
        """
        self.accepted = 0
        self._target = target_host, target_port
        self._loop = asyncio.new_event_loop()
        self._links: list[_Link] = []
        self._up = asyncio.Event()
        self._down = asyncio.Event()
        self._up.set()
        self._down.set()
        self._delay_s = 0.0
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._server: asyncio.Server = self._call(self._listen)
        self.port: int = self._server.sockets[0].getsockname()[1]

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._accept, "127.0.0.1", 0)

    def _call(self, work: Callable[[], Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work(), self._loop).result(_CALL_TIMEOUT_S)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        try:
            theirs = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        link = _Link(writer, theirs[1])
        self._links.append(link)
        # Cancelled by `close`; asyncio's streams would print that.
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(
                self._pump(reader, theirs[1], self._up), self._pump(theirs[0], writer, self._down)
            )
        self._links.remove(link)
        link.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, open_: asyncio.Event
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK):
                if self._delay_s:
                    await asyncio.sleep(self._delay_s)
                # What was read stays here while the direction is silent, as in a full network.
                await open_.wait()
                writer.write(data)
                await writer.drain()
        with contextlib.suppress(OSError, RuntimeError):
            writer.close()

    @property
    def open(self) -> int:
        """How many connections are open; each takes two descriptors of this process."""
        return len(self._links)

    def reset(self) -> int:
        """Cut every connection with RST and return how many there were."""

        async def work() -> int:
            cut = len(self._links)
            for link in list(self._links):
                link.reset()
            return cut

        return int(self._call(work))

    def silence(self, up: bool = True, down: bool = True) -> None:
        """Pass nothing on: towards the server (`up`), towards the client (`down`), or both.

        Connections stay open, also those made meanwhile: nobody is told.
        """

        async def work() -> None:
            if up:
                self._up.clear()
            if down:
                self._down.clear()

        self._call(work)

    def speak(self) -> None:
        """Pass everything on again, also what was held back."""

        async def work() -> None:
            self._up.set()
            self._down.set()

        self._call(work)

    def forget_old(self) -> None:
        """Make what is open now silent for ever, and pass on what is opened from now on.

        As after a fail-over of a firewall, which knows only new connections: half-open ones.
        """

        async def work() -> None:
            for link in self._links:
                link.mute()

        self._call(work)

    def slow(self, delay_s: float) -> None:
        """Hold each piece of data for so long; 0 ends that."""

        async def work() -> None:
            self._delay_s = delay_s

        self._call(work)

    def close(self) -> None:
        """End all connections and the thread."""

        async def work() -> None:
            self._server.close()
            for link in list(self._links):
                link.abort()
            mine = asyncio.current_task()
            others = [task for task in asyncio.all_tasks() if task is not mine]
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        self._call(work)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


def proxied(url: str) -> tuple[str, Proxy]:
    """Return a URL that leads to the same server through a new proxy.

    Raises:
        ConfigError: For TLS, whose certificate is not 127.0.0.1's, and for lists of URLs.
    """
    parts = urlsplit(url)
    if parts.scheme not in _PORTS or ";" in url or ",amqp" in url:
        raise ConfigError(
            "faults of the network need one amqp:// or redis:// URL; "
            "leave them out with --faults, or name a server without TLS"
        )
    proxy = Proxy(parts.port or _PORTS[parts.scheme], parts.hostname or "localhost")
    query = parts.query
    if parts.scheme == "amqp" and "heartbeat=" not in query:
        # By default a silent connection takes three times 15 s to be noticed: few rounds.
        query = f"{query}&{_HEARTBEAT}" if query else _HEARTBEAT
    login = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
    return urlunsplit(parts._replace(netloc=f"{login}127.0.0.1:{proxy.port}", query=query)), proxy


class _Link:
    """The two ends of one connection."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self._ends = (client, server)

    def mute(self) -> None:
        for end in self._ends:
            transport: Any = end.transport
            with contextlib.suppress(RuntimeError):
                transport.pause_reading()

    def reset(self) -> None:
        for end in self._ends:
            sock: socket.socket = end.get_extra_info("socket")
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NOW_RESET)
        self.abort()

    def abort(self) -> None:
        for end in self._ends:
            end.transport.abort()
