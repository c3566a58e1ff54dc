"""The embedded broker: queues in one SQLite file, for many processes of one machine."""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from taskq import clock
from taskq.brokers import sqlite_control, sqlite_dead, sqlite_rows, sqlite_shards, sqlite_topics
from taskq.brokers.base import (
    DEAD_QUEUE,
    Broker,
    BrokerOptions,
    Check,
    Consumer,
    Delivery,
    Outgoing,
    Publishing,
    QueueDepth,
    Sink,
    Verdict,
)
from taskq.brokers.replay import Replay
from taskq.brokers.shapes import check_queue_name
from taskq.brokers.sqlite_checks import check_database
from taskq.brokers.sqlite_consumer import SqliteConsumer
from taskq.brokers.sqlite_dead import translated
from taskq.brokers.sqlite_events import SqliteFeed
from taskq.brokers.sqlite_leases import living
from taskq.brokers.sqlite_publish import Outbox
from taskq.brokers.sqlite_rpc import RpcClient
from taskq.embedded.database import open_database
from taskq.embedded.location import parse_location
from taskq.errors import ConfigError, PublishError
from taskq.message import Message
from taskq.topics import Binding

_PURGE_ROWS: Final = 5000
_PAGE_ROWS: Final = 1000


class SqliteBroker(Broker):
    """Queues in a file; durable sends, leases for acknowledgements, exact delays and priorities.

    A message claimed by a consumer that falls silent for `options.lease_s`, or whose process
    died, is delivered again with `Delivery.deliveries` one higher.

    Attributes:
        url: With an absolute path.
        options: See `BrokerOptions`; `queue_type` and `name` mean nothing here.
        durable_count: True; see `Broker`.
    """

    durable_count = True

    def __init__(self, url: str, options: BrokerOptions) -> None:
        """Take the URL apart; the file is opened, or made, at first use.

        Args:
            url: `sqlite:///relative.db` or `sqlite:////absolute.db`.
            options: The app's settings.

        Raises:
            ConfigError: If the URL names no file.
        """
        location = parse_location(url)
        self.url = location.url
        self.options = options
        self._database = open_database(location)
        self._outbox = Outbox(self._database, options)
        self._timeout_s = options.publish_timeout_s
        self._rpc = RpcClient(self._database, self.publish, self._timeout_s)
        self._closed = False

    def submit(self, batch: Sequence[Outgoing], timeout_s: float) -> Publishing:
        """Begin to send; see `Broker`."""
        return self._outbox.submit(batch, timeout_s)

    def publish(self, batch: Sequence[Outgoing], timeout_s: float) -> list[PublishError | None]:
        """Send and wait, on the calling thread; see `Broker`."""
        return self._outbox.publish(batch, timeout_s)

    def consumer(
        self, queues: Sequence[str], prefetch: int, sink: Sink, loop: asyncio.AbstractEventLoop
    ) -> Consumer:
        """Make a consumer; see `Broker`.

        Raises:
            ConfigError: If a name is not usable.
        """
        queues = [check_queue_name(name) for name in queues]
        return SqliteConsumer(
            self._database, self.options, queues, prefetch, sink, loop, self._declare
        )

    def declare(self, queues: Iterable[str]) -> None:
        """Create or check queues; see `Broker`.

        Raises:
            ConfigError: If one is missing and `options.declare` is not `create`.
            BrokerUnavailable: If the file cannot be used in time.
        """
        with translated():
            self._declare(queues)

    def _declare(self, queues: Iterable[str]) -> None:
        names = {self._inner(name) for name in queues}
        if self.options.declare == "create":
            with self._database.writing(self._timeout_s) as connection:
                now_ms = clock.now_ms()
                sqlite_shards.check_layout(connection, self.options.prefix, names)
                connection.executemany(sqlite_rows.ADD_QUEUE, [(name, now_ms) for name in names])
            return
        if self.options.declare == "never":
            return
        with self._database.reading(self._timeout_s) as connection:
            missing = names - {name for (name,) in connection.execute("SELECT name FROM queues")}
        if missing:
            raise ConfigError(
                f"{self._database.label} has no queue {', '.join(sorted(missing))}; create it, "
                "or set declare to 'create'"
            )

    def depths(self, queues: Iterable[str]) -> dict[str, QueueDepth | None]:
        """Return the depth of each queue; see `Broker`."""
        now_ms = clock.now_ms()
        depths: dict[str, QueueDepth | None] = {}
        with translated(), self._database.reading(self._timeout_s) as connection:
            known = {name for (name,) in connection.execute("SELECT name FROM queues")}
            consumers = living(connection, self.options.prefix)
            for name in queues:
                inner = self._inner(name)
                if name == DEAD_QUEUE:
                    query, values = sqlite_rows.COUNT_DEAD, (inner, now_ms)
                    (letters,) = connection.execute(query, values).fetchone()
                    depths[name] = QueueDepth(letters, 0, 0, 0)
                    continue
                if inner not in known:
                    depths[name] = None
                    continue
                (ready,) = connection.execute(sqlite_rows.COUNT_READY, (inner,)).fetchone()
                (held,) = connection.execute(sqlite_rows.COUNT_LEASED, (inner,)).fetchone()
                due, later = connection.execute(
                    sqlite_rows.COUNT_DELAYED, (now_ms, now_ms, inner)
                ).fetchone()
                listening = sum(inner in names for names in consumers.values())
                depths[name] = QueueDepth(ready + due, held, later, listening)
        return depths

    def due_within(self, horizon_s: float) -> int:
        """Return how many delayed messages will be due within so many seconds; exact."""
        until_ms = clock.now_ms() + round(horizon_s * 1000)
        with translated(), self._database.reading(self._timeout_s) as connection:
            (count,) = connection.execute(sqlite_rows.DUE_BEFORE, (until_ms,)).fetchone()
        return int(count)

    def known_queues(self) -> list[str]:
        """Return all queues with this prefix, sorted, without it."""
        prefix = self.options.prefix
        with translated(), self._database.reading(self._timeout_s) as connection:
            names = [name for (name,) in connection.execute("SELECT name FROM queues")]
        return sorted(name[len(prefix) :] for name in names if name.startswith(prefix))

    def waiting(self) -> Iterator[Message]:
        """Yield every message that is not dead, page by page; see `Broker`."""
        with translated(), self._database.reading(self._timeout_s) as connection:
            (last,) = connection.execute(sqlite_rows.LAST).fetchone()
        after = -1
        while after:
            with translated(), self._database.reading(self._timeout_s) as connection:
                after, found = sqlite_rows.waiting_page(
                    connection, self.options.prefix, after, last, _PAGE_ROWS
                )
            yield from found

    def purge(self, queue: str) -> int:
        """Delete what is ready in a queue; see `Broker`. `taskq.dead` empties the dead letters."""
        inner = self._inner(queue)
        now_ms = clock.now_ms()
        with translated():
            with self._database.reading(self._timeout_s) as connection:
                known = {name for (name,) in connection.execute("SELECT name FROM queues")}
                (last,) = connection.execute(sqlite_rows.LAST).fetchone()
            if queue == DEAD_QUEUE:
                return self._delete_all(sqlite_rows.PURGE_DEAD, (inner, last))
            if inner not in known:
                raise ConfigError(
                    f"{self._database.label} has no queue {queue!r}; it knows "
                    f"{', '.join(self.known_queues()) or 'none'}"
                )
            return self._delete_all(sqlite_rows.PURGE_READY, (inner, last)) + self._delete_all(
                sqlite_rows.PURGE_DUE, (now_ms, inner, last)
            )

    def _delete_all(self, statement: str, values: tuple[Any, ...]) -> int:
        """Delete in steps, so that workers get their turn in between."""
        deleted = 0
        while True:
            with self._database.writing(self._timeout_s) as connection:
                count = connection.execute(statement, (*values, _PURGE_ROWS)).rowcount
            deleted += count
            if count < _PURGE_ROWS:
                return deleted

    def reshard(self, queue: str, count: int) -> int:
        """Move what waits in a queue's shards, in one transaction; see `Broker`."""
        with translated(), self._database.writing(self._timeout_s) as connection:
            return sqlite_shards.reshard(connection, self.options.prefix, queue, count)

    def sweep_dead(self, visit: Callable[[Delivery], Verdict]) -> int:
        """Show the dead letters to `visit`; see `Broker`."""
        with translated():
            return sqlite_dead.sweep(
                self._database, self._outbox, self.options.prefix, visit, self._timeout_s
            )

    def replay(self, queues: Iterable[str], create: bool = False) -> Replay:
        """Begin to send dead letters back; see `Broker`."""
        with translated():
            known = set(self.known_queues())
        missing = [name for name in queues if check_queue_name(name) not in known]
        if missing and not create:
            raise ConfigError(f"{self._database.label} has no queue {', '.join(sorted(missing))}")
        return sqlite_dead.SqliteReplay(
            self._database, self._outbox, self.options.prefix, self._timeout_s
        )

    def ask(self, request: Mapping[str, Any], timeout_s: float) -> list[dict[str, Any]]:
        """Ask all workers; see `Broker`. Returns early when all of them answered."""
        with translated():
            return sqlite_control.ask(
                self._database, self.options.prefix, request, timeout_s, self._timeout_s
            )

    def bind(self, bindings: Sequence[Binding]) -> None:
        """Write what subscribers' queues get; see `Broker`."""
        if bindings and self.options.declare == "create":
            with translated(), self._database.writing(self._timeout_s) as connection:
                sqlite_topics.bind(connection, self.options.prefix, bindings, clock.now_ms())

    def request(self, item: Outgoing, timeout_s: float) -> bytes:
        """Send a message and wait for its answer; see `Broker`."""
        return self._rpc.request(item, timeout_s)

    def events(self, name: str = "", prefetch: int = 100) -> SqliteFeed:
        """Read lifecycle events; see `Broker`."""
        with translated():
            return SqliteFeed(self._database, self.options.prefix, name, self._timeout_s)

    def checks(self, queues: Iterable[str]) -> list[Check]:
        """Examine the file; see `Broker`."""
        names = [self._inner(name) for name in queues]
        create = self.options.declare == "create"
        return list(check_database(self._database, names, create, self._timeout_s))

    def close(self) -> None:
        """End the sending thread and let go of the file; see `Broker`."""
        if not self._closed:
            self._closed = True
            self._rpc.close()
            self._outbox.close()
            self._database.close()

    def _inner(self, name: str) -> str:
        return self.options.prefix + check_queue_name(name)
