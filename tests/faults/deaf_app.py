"""An app whose worker, in the solo pool, consumes nothing without knowing it."""

from crash_app import app

from taskq.brokers.rabbitmq_link import Link
from taskq.brokers.sqlite_consumer import SqliteConsumer

__all__ = ["app"]


async def _consume_not(self, tag):
    """Believe to consume."""


Link._consume = _consume_not
SqliteConsumer._room = lambda self: []
