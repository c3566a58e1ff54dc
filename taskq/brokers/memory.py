"""The broker for tests: the embedded engine on a database that lives in this process only."""

from taskq.brokers.base import BrokerOptions
from taskq.brokers.sqlite import SqliteBroker


class MemoryBroker(SqliteBroker):
    """Queues in memory, shared by all who use the same name in this process.

    They end with the last broker or results store of that name that is closed. A forked child
    begins with empty ones.

    Attributes:
        url: `memory://name`.
        options: See `BrokerOptions`.
        durable_count: True; see `Broker`.
    """

    def __init__(self, url: str, options: BrokerOptions) -> None:
        """Join the database of that name, or make it.

        Args:
            url: `memory://` or `memory://name`.
            options: The app's settings.

        Raises:
            ConfigError: If the URL has more than a name.
        """
        super().__init__(url, options)
