"""What a queue is made of on the broker: its high part, its shards, its own kinds of priority.

Pure names and numbers, the same for every broker and every process.
"""

import re
from dataclasses import dataclass
from typing import Final

from taskq.errors import ConfigError

HIGH_SUFFIX: Final = ".high"
"""Ends the name of the queue that takes a quorum queue's urgent messages."""
HIGH_FROM: Final = 5
"""Lowest priority that goes there."""
MAX_SHARDS: Final = 1024

_SHARD = re.compile(r"(.+)\.shard\.([1-9]\d{0,3})\.(0|[1-9]\d{0,3})")


@dataclass(frozen=True, slots=True)
class QueueShape:
    """How a queue differs from others, as plain data; the user's `taskq.Queue` without its key.

    Attributes:
        name: Name without prefix.
        max_priority: On RabbitMQ a classic queue with so many priorities; 0 for the usual kind.
        shards: In how many parts it is, each worked off in order; 0 for one queue.
    """

    name: str
    max_priority: int = 0
    shards: int = 0

    def names(self) -> tuple[str, ...]:
        """Return the queues that hold its messages: itself, and its shards where it has some.

        A sharded queue's own name takes what does not know its shard yet.
        """
        parts = [shard_name(self.name, self.shards, index) for index in range(self.shards)]
        return (self.name, *parts)


def check_queue_name(name: str) -> str:
    """Return the name of a queue, checked.

    Raises:
        ConfigError: Unless it is 1 to 200 characters out of letters, digits and `_ . : -`, and is
            not one of those that taskq makes out of a queue's name.
    """
    good = isinstance(name, str) and 0 < len(name) <= 200 and name.isascii()
    if not good or not all(ch.isalnum() or ch in "_.:-" for ch in name):
        raise ConfigError(
            f"queue name {name!r} is not usable; use 1 to 200 letters, digits or any of _ . : -"
        )
    if name.endswith(HIGH_SUFFIX):
        raise ConfigError(
            f"queue name {name!r} ends in {HIGH_SUFFIX}, which names the urgent part of queue "
            f"{name.removesuffix(HIGH_SUFFIX)!r}; send there with priority={HIGH_FROM} or more"
        )
    return name


def high_part(queue: str) -> str:
    """Return the name of a queue's high part."""
    return queue + HIGH_SUFFIX


def base_part(name: str) -> str:
    """Return the queue that a high part belongs to; any other name as it is."""
    return name.removesuffix(HIGH_SUFFIX)


def goes_high(priority: int) -> bool:
    """Return whether a message of this priority goes to the high part."""
    return priority >= HIGH_FROM


def shard_name(queue: str, count: int, index: int) -> str:
    """Return the name of one of `count` shards; the count in it keeps layouts apart."""
    return f"{queue}.shard.{count}.{index}"


def parse_shard(name: str) -> tuple[str, int, int] | None:
    """Return (queue, count, index) of a shard's name; None for any other name."""
    found = _SHARD.fullmatch(name)
    if found is None:
        return None
    count, index = int(found[2]), int(found[3])
    return (found[1], count, index) if index < count else None
