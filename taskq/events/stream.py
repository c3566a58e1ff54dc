"""Reading events as they happen: filters, subscriptions in a thread, a plain iterator."""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from taskq.brokers.base import Broker
from taskq.errors import BrokerUnavailable, ConfigError, DecodeError, TaskqError
from taskq.events.bus import ProcessRecorder
from taskq.events.feed import EventFeed
from taskq.events.schema import TASK_STATES, Event, read_batch
from taskq.events.watermark import Watermark

log = logging.getLogger("taskq.events")

_POLL_S: Final = 0.5
_JOIN_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Filter:
    """Which events one wants; what is empty filters nothing.

    Attributes:
        types: Such as `task.failed`.
        task: A task's name.
        queue: A queue's name.
        state: A state, such as `FAILURE`.
        task_id: A task's id; its children pass too.
    """

    types: tuple[str, ...] = ()
    task: str = ""
    queue: str = ""
    state: str = ""
    task_id: str = ""

    def passes(self, event: Event) -> bool:
        """Return whether an event is wanted."""
        data = event.data
        if self.types and event.type not in self.types:
            return False
        if self.task_id and self.task_id not in (
            data.get("task_id"),
            data.get("root_id"),
            data.get("parent_id"),
        ):
            return False
        wanted = (("task", self.task), ("queue", self.queue), ("state", self.state))
        return all(not value or data.get(name) == value for name, value in wanted)


class Reader:
    """Events of a feed, without duplicates.

    Attributes:
        unreadable: Batches that were no events, or of a later version; they are left out.
        watermark: What was seen; counts duplicates and gaps.
    """

    def __init__(self, feed: EventFeed, wanted: Filter | None = None) -> None:
        self.unreadable = 0
        self.watermark = Watermark()
        self._feed = feed
        self._wanted = wanted or Filter()

    def read(self, timeout_s: float) -> list[Event]:
        """Return what has come, or what comes within the timeout.

        Raises:
            ConfigError: If the broker refuses for good.
            BrokerUnavailable: If the embedded file cannot be read.
        """
        found: list[Event] = []
        for _, body in self._feed.get(timeout_s):
            try:
                events = read_batch(body)
            except DecodeError as error:
                self.unreadable += 1
                log.warning("ignoring a batch of events error=%s", error)
                continue
            found += filter(self._wanted.passes, self.watermark.fresh(events))
        return found


class Subscription:
    """Calls a function with each event, on a thread of its own, until `close`."""

    def __init__(self, feed: EventFeed, wanted: Filter, handler: Callable[[Event], Any]) -> None:
        self._feed = feed
        self._reader = Reader(feed, wanted)
        self._handler = handler
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="taskq-subscription", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop; the handler is not called any more when this returns."""
        self._closing.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(_JOIN_S)

    def __enter__(self) -> "Subscription":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _run(self) -> None:
        try:
            while not self._closing.is_set():
                self._deliver()
        except ConfigError as error:
            log.error("a subscription to events ended error=%s", error)
        finally:
            self._feed.close()

    def _deliver(self) -> None:
        try:
            events = self._reader.read(_POLL_S)
        except BrokerUnavailable as error:
            log.warning("a subscription to events waits error=%s", error)
            self._closing.wait(_POLL_S)
            return
        for event in events:
            if self._closing.is_set():
                return
            try:
                self._handler(event)
            # A handler is user code: one bad event must not end the stream of the others.
            except Exception:
                log.exception("a handler of events failed type=%s id=%s", event.type, event.id)


class Events:
    """The lifecycle events of an app: `app.events`."""

    def __init__(
        self, broker: Callable[[], Broker], recorder: ProcessRecorder, silent: bool = False
    ) -> None:
        self._broker = broker
        self._recorder = recorder
        self._silent = silent

    def subscribe(
        self,
        handler: Callable[[Event], Any],
        *,
        types: Iterable[str] = (),
        task: str = "",
        queue: str = "",
        state: str = "",
        task_id: str = "",
    ) -> Subscription:
        """Call a function with each event from now on, of every process of the app's broker.

        Args:
            handler: Called on a thread of the subscription; what it raises is logged.
            types: Only these, such as `task.failed`.
            task: Only those of this task.
            queue: Only those of this queue.
            state: Only those that leave their task in this state.
            task_id: Only those of this task id and its children.

        Raises:
            ConfigError: For an unknown type, or if the broker refuses.
            BrokerUnavailable: If the broker cannot be opened.
        """
        wanted = make_filter(types, task, queue, state, task_id)
        return Subscription(self._broker().events(), wanted, handler)

    def tail(self, wanted: Filter | None = None, *, timeout_s: float = 3600.0) -> Iterator[Event]:
        """Yield events from now on; ends when none came for so long.

        Args:
            wanted: Which.
            timeout_s: How long to wait for the next one, in seconds.
        """
        feed = self._broker().events()
        reader = Reader(feed, wanted)
        return _tail(feed, reader, timeout_s)

    def replay(
        self, since: datetime, until: datetime | None = None, *, file: str = ""
    ) -> Iterator[Event]:
        """Yield recorded events again, oldest first, such as to rebuild a state from them.

        They come from the history: of an embedded broker it is brought up to date before; with
        RabbitMQ `taskq events record` has to run.

        Args:
            since: From this moment on; an aware datetime.
            until: Before this moment; now by default.
            file: The history; beside the embedded file, else `taskq-history.db`, by default.

        Raises:
            ConfigError: If a moment has no zone, or the file cannot be used.
        """
        from taskq.events.history import replay

        moments = [since, until or datetime.now(UTC)]
        for moment in moments:
            if not isinstance(moment, datetime) or moment.tzinfo is None:
                raise ConfigError(f"{moment!r} is no aware datetime, such as datetime.now(UTC)")
        since_us, until_us = (round(moment.timestamp() * 1e6) for moment in moments)
        return replay(self._broker(), since_us, until_us, file)

    def tell(self, kind: str, data: dict[str, Any], timeout_s: float = 5.0) -> bool:
        """Publish an event of one's own at once, such as `schedule.fired`.

        Args:
            kind: Its type: two words with a dot.
            data: Its fields; plain values.
            timeout_s: How long it may take, in seconds.

        Returns:
            Whether the broker confirmed it.
        """
        recorder, broker = self._recorder(), self._broker()
        with self._recorder.order:
            recorder.tell(kind, data)
            item = recorder.take()
            if item is None:
                return True
            publishing = broker.submit([item], timeout_s)
        error = publishing.wait()[0]
        if error is not None:
            recorder.lost(item)
        return error is None

    def announce(self, kind: str, data: dict[str, Any]) -> None:
        """Tell what was just done; a failure is logged, and `events="off"` says nothing.

        Args:
            kind: Its type, such as `queue.paused`.
            data: Its fields; plain values.
        """
        if self._silent:
            return
        try:
            told = self.tell(kind, data)
        except TaskqError as error:
            log.info("%s could not be told error=%s", kind, error)
        else:
            if not told:
                log.info("%s could not be told", kind)


def _tail(feed: EventFeed, reader: Reader, timeout_s: float) -> Iterator[Event]:
    try:
        while events := reader.read(timeout_s):
            yield from events
    finally:
        feed.close()


def make_filter(
    types: Iterable[str] = (), task: str = "", queue: str = "", state: str = "", task_id: str = ""
) -> Filter:
    """Return a filter, checked; see `Events.subscribe`.

    Args:
        types: Types of events.
        task: A task's name.
        queue: A queue's name.
        state: A state.
        task_id: A task's id.

    Raises:
        ConfigError: For a state that no event has.
    """
    known = set(TASK_STATES.values())
    if state and state.upper() not in known:
        raise ConfigError(f"no event has state {state!r}; known: {', '.join(sorted(known))}")
    names = (types,) if isinstance(types, str) else tuple(types)
    return Filter(names, task, queue, state.upper(), task_id)
