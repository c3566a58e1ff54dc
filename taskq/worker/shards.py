"""Messages in a sharded queue's own name: sent on to their shard, without a look at the body.

They come from senders that do not know of the shards (Celery, a replay to the queue's name), and
from delays that began under another number of shards.
"""

from collections.abc import Sequence

from taskq.brokers.base import Outgoing
from taskq.brokers.shapes import QueueShape, shard_for
from taskq.message import SHARD_KEY
from taskq.worker import endings
from taskq.worker.endings import Ending
from taskq.worker.held import Held


class Forward:
    """The gate for deliveries of sharded queues; see `taskq.worker.intake.Gate`."""

    def __init__(self, shapes: Sequence[QueueShape], worker: str, results: bool) -> None:
        self._counts = {shape.name: shape.shards for shape in shapes if shape.shards}
        self._worker = worker
        self._results = results

    def __bool__(self) -> bool:
        return bool(self._counts)

    def idle(self) -> bool:
        """Return False: any delivery may have to go on; see `Gate`."""
        return False

    def ask(self, batch: Sequence[Held]) -> Sequence[Ending | None]:
        """Return for each delivery None, or that it is sent on to its shard."""
        return [self._verdict(held) for held in batch]

    def _verdict(self, held: Held) -> Ending | None:
        queue = held.delivery.queue
        if queue not in self._counts:
            return None
        key = held.delivery.message.headers.get(SHARD_KEY)
        if not isinstance(key, str):
            # Without a key there is no order to keep; its id spreads such messages.
            key = held.delivery.message.id
        ending = endings.deferred(held.case(self._worker, self._results), held.due_ms)
        (item,) = ending.follow
        shard = shard_for(queue, key, self._counts[queue])
        # Within a shard the order of arrival is the only one.
        ending.follow = (Outgoing(shard, item.message._replace(priority=0), item.due_ms),)
        return ending
