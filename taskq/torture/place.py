"""Where the torture happens: apart from everybody else's queues, and nothing is left behind."""

import contextlib
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

from taskq.app import TaskQ
from taskq.brokers.base import DEAD_QUEUE
from taskq.errors import ConfigError
from taskq.events.schema import EXCHANGE
from taskq.torture.tasks import QUEUE

_PART: Final = 1000


def new_prefix() -> str:
    """Return a prefix that nobody has."""
    return f"taskq-torture-{uuid.uuid4().hex[:8]}."


def check_free(app: TaskQ) -> None:
    """Refuse a place that holds queues already, or whose results store is not there.

    Raises:
        ConfigError: If it holds any.
        BrokerUnavailable: If the broker cannot be reached.
        ResultsUnavailable: If the results store cannot be reached: every send would be confirmed,
            and the account would wait for minutes before it called all of them lost.
    """
    if app.results is not None:
        app.results.fetch([str(uuid.uuid4())])
    broker = app.broker
    depths = broker.depths({QUEUE, DEAD_QUEUE, "default"})
    if broker.url.startswith("amqp"):
        # AMQP cannot list queues; whoever has delayed tasks or workers here has that of the dead.
        taken = [name for name, depth in depths.items() if depth is not None]
    else:
        letters = depths[DEAD_QUEUE]
        taken = [name for name in broker.known_queues() if name != DEAD_QUEUE]
        # A file always knows the queue of dead letters; letters in it are somebody's.
        taken += [DEAD_QUEUE] if letters is not None and letters.ready else []
    if taken:
        raise ConfigError(
            f"{broker.url} holds queues already ({', '.join(sorted(taken)[:5])}); torture works "
            "only apart from others: leave --prefix out, or name a new file or an empty vhost"
        )


def file_of(url: str) -> Path | None:
    """Return the file of an embedded URL, None for a server's."""
    if not url.startswith("sqlite:///"):
        return None
    return Path(unquote(url.removeprefix("sqlite:///")))


def forget(app: TaskQ, ids: Sequence[str]) -> None:
    """Remove the results of these tasks.

    Raises:
        ResultsUnavailable: If the results store cannot be reached.
    """
    store = app.results
    if store is not None:
        for start in range(0, len(ids), _PART):
            store.forget(ids[start : start + _PART])


def clean_up(app: TaskQ) -> None:
    """Remove the queues and exchanges below the prefix on RabbitMQ.

    Raises:
        BrokerUnavailable: If the broker cannot be reached.
    """
    if app.broker.url.startswith("amqp"):
        _delete_objects(app.settings.broker or "", app.settings.prefix)


def _delete_objects(url: str, prefix: str) -> None:
    import pika

    from taskq.brokers.amqp_url import parse_urls
    from taskq.brokers.shapes import high_part
    from taskq.brokers.topology import GRID, Topology

    if not prefix:
        # A vhost of the user's, who removes it.
        return
    topology = Topology(prefix)
    connection: Any = pika.BlockingConnection(parse_urls(url, "torture")[0].parameters)
    with contextlib.closing(connection):
        channel = connection.channel()
        delays = [topology.delay(bucket) for bucket in GRID]
        own = (topology.dead, topology.replay, *delays)
        for name in (topology.on_broker(QUEUE), topology.on_broker(high_part(QUEUE)), *own):
            channel.queue_delete(name)
        events = topology.on_broker(EXCHANGE)
        for name in (topology.due, topology.control, events, *own):
            channel.exchange_delete(name)
