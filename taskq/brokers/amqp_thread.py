"""One daemon thread with an asyncio loop, for blocking callers; usable after a fork."""

import asyncio
import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Final, TypeVar

from taskq.errors import BrokerUnavailable

T = TypeVar("T")
_STOP_TIMEOUT_S: Final = 5.0
_threads: "weakref.WeakSet[IoThread]" = weakref.WeakSet()
# Objects of the parent that a child must neither use nor destroy: closing a selector or a TLS
# connection in order would act on what the parent still uses.
_inherited: list[Any] = []


class IoThread:
    """Runs callbacks and coroutines; starts with the first one.

    Attributes:
        on_fork: Called in a forked child, which must close what it inherited without a word on
            the wire. All state made on the loop is void there.
        on_stop: Awaited on the loop before it stops.
    """

    def __init__(
        self,
        name: str,
        on_fork: Callable[[], None],
        on_stop: Callable[[], Coroutine[Any, Any, None]],
    ) -> None:
        self.on_fork = on_fork
        self.on_stop = on_stop
        self._name = name
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        _threads.add(self)

    @property
    def running(self) -> bool:
        """Whether the thread was started."""
        return self._loop is not None

    def loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop, started.

        Raises:
            BrokerUnavailable: After `close`.
        """
        loop = self._loop
        if loop is not None and not self._closed:
            return loop
        with self._lock:
            if self._closed:
                raise BrokerUnavailable("this broker was closed")
            if self._loop is None:
                loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=self._run, args=(loop,), name=self._name, daemon=True
                )
                self._thread.start()
                self._loop = loop
            return self._loop

    @staticmethod
    def _run(loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
        finally:
            asyncio.set_event_loop(None)
            loop.close()

    def call(self, callback: Callable[..., Any], *args: Any) -> None:
        """Run a callback on the loop, soon.

        Raises:
            BrokerUnavailable: After `close`.
        """
        try:
            self.loop().call_soon_threadsafe(callback, *args)
        except RuntimeError as error:
            raise BrokerUnavailable("this broker was closed") from error

    def run(self, coroutine: Coroutine[Any, Any, T], timeout_s: float | None = None) -> T:
        """Run a coroutine on the loop and wait for its result.

        Raises:
            BrokerUnavailable: If it does not end in time, or after `close`.
        """
        try:
            loop = self.loop()
        except BrokerUnavailable:
            coroutine.close()
            raise
        future: Future[T] = asyncio.run_coroutine_threadsafe(coroutine, loop)
        try:
            return future.result(timeout_s)
        except TimeoutError:
            future.cancel()
            raise BrokerUnavailable(f"RabbitMQ did not answer within {timeout_s:g} s") from None

    def close(self) -> None:
        """Stop the loop and the thread; may be called twice."""
        with self._lock:
            loop, thread = self._loop, self._thread
            self._closed = True
            self._loop = self._thread = None
        if loop is None or thread is None:
            return
        stopped = asyncio.run_coroutine_threadsafe(self._stop(loop), loop)
        with contextlib.suppress(Exception):
            stopped.result(_STOP_TIMEOUT_S)
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(loop.stop)
        if thread is not threading.current_thread():
            thread.join(_STOP_TIMEOUT_S)

    async def _stop(self, loop: asyncio.AbstractEventLoop) -> None:
        await self.on_stop()
        mine = asyncio.current_task()
        others = [task for task in asyncio.all_tasks(loop) if task is not mine]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def after_fork(self) -> None:
        """Forget the parent's thread; the child starts its own when it needs one."""
        loop = self._loop
        self._lock = threading.Lock()
        self._loop = self._thread = None
        if loop is not None:
            self.on_fork()
            _close_inherited_loop(loop)


def _close_inherited_loop(loop: Any) -> None:
    _inherited.append(loop)
    for name in ("_ssock", "_csock"):
        end = getattr(loop, name, None)
        if end is not None:
            close_inherited_socket(end)
    selector = getattr(loop, "_selector", None)
    if selector is not None:
        # Closes the child's descriptor only; unregistering would act on the parent's selector.
        with contextlib.suppress(OSError):
            selector.close()


def close_inherited_socket(end: Any) -> None:
    """Close a socket's descriptor in a forked child; the parent's connection goes on."""
    _inherited.append(end)
    with contextlib.suppress(OSError):
        os.close(end.detach())


def _after_fork_in_child() -> None:
    for thread in list(_threads):
        thread.after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
