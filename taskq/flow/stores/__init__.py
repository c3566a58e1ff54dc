"""The store of flow control that goes with a results store."""

from taskq.flow.store import FlowStore
from taskq.results.base import ResultStore


def open_flow(results: ResultStore) -> FlowStore:
    """Return the flow control store in the same place as a results store, on its connections."""
    scheme = results.url.partition(":")[0]
    if scheme in ("sqlite", "memory"):
        from taskq.flow.stores.sqlite import SqliteFlow
        from taskq.results.sqlite import SqliteResults

        if isinstance(results, SqliteResults):
            return SqliteFlow(results)
    from taskq.flow.stores.redis import RedisFlow
    from taskq.results.redis import RedisResults

    if not isinstance(results, RedisResults):
        raise TypeError(f"no flow control for {type(results).__name__}")
    return RedisFlow(results)
