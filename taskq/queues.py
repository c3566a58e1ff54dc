"""Queues that differ from the usual: sharded, ordered by the broker, or bounded."""

from collections.abc import Mapping, Sequence
from typing import Any

from taskq.brokers.shapes import (
    DROP_HEAD,
    MAX_SHARDS,
    REJECT,
    QueueShape,
    check_queue_name,
    shard_for,
)
from taskq.errors import ConfigError
from taskq.flow.keys import Key, make_key
from taskq.message import SHARD_KEY, TOP_PRIORITY

_MOST = 1_000_000_000
_LONGEST_S = 366 * 86400


class Queue:
    """A declared queue: `TaskQ("shop", queues=[Queue("orders", shards=8, shard_key=...)])`.

    Tasks of one shard run one at a time, in the order in which they were sent, whatever the number
    of workers; so do all tasks whose keys are equal. Different shards run side by side.

    Attributes:
        name: Its name.
        shape: What the broker knows of it.
    """

    def __init__(
        self,
        name: str,
        *,
        shards: int = 0,
        shard_key: Any = None,
        max_priority: int = 0,
        max_length: int = 0,
        message_ttl_s: float = 0,
        overflow: str = REJECT,
    ) -> None:
        """Declare a queue.

        Args:
            name: Name as tasks and routes give it.
            shards: Into how many parts it is divided, 2 to 1024; 0 for none.
            shard_key: What the shard is found by: an expression such as `args[0]` or
                `kwargs['order_id']`, or a function of the task's arguments.
            max_priority: On RabbitMQ a classic queue with this `x-max-priority`, 1 to 9; 0 for the
                usual kind.
            max_length: Most messages that may wait, 0 for no bound. On RabbitMQ it holds for the
                queue and its part of high priority each.
            message_ttl_s: How long a message may wait before it becomes a dead letter
                (`message_ttl`), in seconds; 0 for ever.
            overflow: What a full queue does: `reject-publish`, so that a send raises
                `PublishError`, or `drop-head-to-dead`, so that its oldest message becomes a dead
                letter (`queue_full`).

        Raises:
            ConfigError: For a value that cannot be used, shards without a key, or shards with
                what they do not have.
        """
        self.name = check_queue_name(name)
        _whole(name, "shards", shards, MAX_SHARDS)
        _whole(name, "max_priority", max_priority, TOP_PRIORITY)
        if shards == 1:
            raise ConfigError(f"queue {name}: shards is 1; use 2 or more, or 0 for none")
        if bool(shards) != (shard_key is not None):
            raise ConfigError(f"queue {name}: shards and shard_key go together")
        if shards and max_priority:
            raise ConfigError(f"queue {name}: a shard is worked off in order, without priorities")
        _whole(name, "max_length", max_length, _MOST)
        ttl_ms = _millis(name, message_ttl_s)
        if overflow not in (REJECT, DROP_HEAD):
            raise ConfigError(
                f"queue {name}: overflow is {overflow!r:.60}; use {REJECT!r} or {DROP_HEAD!r}"
            )
        if overflow == DROP_HEAD and not max_length:
            raise ConfigError(f"queue {name}: overflow needs max_length")
        if shards and (max_length or ttl_ms):
            raise ConfigError(f"queue {name}: dropping messages would break the order of a shard")
        self._key: Key | None = make_key(f"queue {name}: shard_key", shard_key)
        self.shape = QueueShape(name, max_priority, shards, max_length, ttl_ms, overflow)

    def __repr__(self) -> str:
        return f"<Queue {self.name}>"

    def place(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
        """Return where a call goes, and the headers that say why.

        Args:
            args: Its positional arguments.
            kwargs: Its keyword arguments.

        Raises:
            KeyExpressionFailed: If the key cannot be made from them.
        """
        if self._key is None:
            return self.name, {}
        key = self._key.value(args, kwargs, None)
        return shard_for(self.name, key, self.shape.shards), {SHARD_KEY: key}


def _whole(queue: str, name: str, value: Any, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= high:
        raise ConfigError(f"queue {queue!r}: {name} is {value!r}; use a whole number 0 to {high}")


def _millis(queue: str, value: Any) -> int:
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if not good or not 0 <= value <= _LONGEST_S:
        raise ConfigError(
            f"queue {queue!r}: message_ttl_s is {value!r:.60}; use seconds, 0 to 366 days"
        )
    # A fraction of a millisecond is not none: 0 would mean for ever.
    return max(1, round(value * 1000)) if value else 0


class _FromBefore:
    """Stands for the value of the previous step, which is not known when a chain is sent."""

    def __repr__(self) -> str:
        return "the previous step's value"


FROM_BEFORE = _FromBefore()


class Queues:
    """The queues that an app declares, by name; `app.queues`."""

    def __init__(self, queues: Sequence[Queue] = ()) -> None:
        """Keep declarations.

        Args:
            queues: Each made by `Queue(...)`.

        Raises:
            ConfigError: For what is no Queue, or two of one name.
        """
        self._queues: dict[str, Queue] = {}
        if not isinstance(queues, list | tuple):
            raise ConfigError(f"queues is {queues!r:.80}; use a list of Queue(...)")
        for queue in queues:
            if not isinstance(queue, Queue):
                raise ConfigError(f"queues holds {queue!r:.80}; declare it with Queue(...)")
            if queue.name in self._queues:
                raise ConfigError(f"queue {queue.name} is declared twice")
            self._queues[queue.name] = queue

    def __len__(self) -> int:
        return len(self._queues)

    def __getitem__(self, name: str) -> Queue:
        return self._queues[name]

    def __contains__(self, name: object) -> bool:
        return name in self._queues

    @property
    def shapes(self) -> tuple[QueueShape, ...]:
        """The declarations as plain data."""
        return tuple(queue.shape for queue in self._queues.values())

    def place(
        self, options: dict[str, Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        """Replace a sharded queue in a call's options by the shard, and note the key.

        Args:
            options: The call's, its `queue` among them; `shard` is added.
            args: Its positional arguments; `FROM_BEFORE` for the previous step's value.
            kwargs: Its keyword arguments.

        Raises:
            KeyExpressionFailed: If the key cannot be made from them.
        """
        queue = self._queues.get(options["queue"])
        if queue is not None and queue.shape.shards:
            options["queue"], options["shard"] = queue.place(args, kwargs)
            # The order of a shard is that of its sends.
            options["priority"] = None
