"""Results for tests: the embedded engine on a database that lives in this process only."""

from taskq.results.sqlite import SqliteResults


class MemoryResults(SqliteResults):
    """Records in memory, in the database that `MemoryBroker` of the same name uses.

    Attributes:
        url: `memory://name`.
    """

    def __init__(self, url: str, timeout_s: float = 5.0) -> None:
        """Join the database of that name, or make it.

        Args:
            url: `memory://` or `memory://name`.
            timeout_s: How long an operation may take, in seconds.

        Raises:
            ConfigError: If the URL has more than a name.
        """
        super().__init__(url, timeout_s)
