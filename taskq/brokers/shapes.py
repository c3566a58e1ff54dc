"""What a queue is made of on the broker: its high part, its shards, its own kinds of priority.

Pure names and numbers, the same for every broker and every process.
"""

import hashlib
import re
from dataclasses import dataclass
from typing import Final

from taskq.errors import ConfigError, ShardsChanged

HIGH_SUFFIX: Final = ".high"
"""Ends the name of the queue that takes a quorum queue's urgent messages."""
HIGH_FROM: Final = 5
"""Lowest priority that goes there."""
MAX_SHARDS: Final = 1024
REJECT: Final = "reject-publish"
DROP_HEAD: Final = "drop-head-to-dead"
"""What a full queue does: refuse what comes, or bury its oldest message as a dead letter."""

_SHARD = re.compile(r"(.+)\.shard\.([1-9]\d{0,3})\.(0|[1-9]\d{0,3})")


@dataclass(frozen=True, slots=True)
class QueueShape:
    """How a queue differs from others, as plain data; the user's `taskq.Queue` without its key.

    Attributes:
        name: Name without prefix.
        max_priority: On RabbitMQ a classic queue with so many priorities; 0 for the usual kind.
        shards: In how many parts it is, each worked off in order; 0 for one queue.
        max_length: Most messages that may wait in it; 0 for no bound.
        message_ttl_ms: How long a message may wait in it; 0 for ever.
        overflow: `REJECT` or `DROP_HEAD`.
    """

    name: str
    max_priority: int = 0
    shards: int = 0
    max_length: int = 0
    message_ttl_ms: int = 0
    overflow: str = REJECT

    @property
    def is_limited(self) -> bool:
        """Whether it is bounded in length or in time."""
        return bool(self.max_length or self.message_ttl_ms)

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


def shard_index(key: str, count: int) -> int:
    """Return which of `count` shards a key belongs to; the same in every process and release.

    The jump consistent hash of Lamping and Veach: with one shard more, 1/n of the keys move, all of
    them to the new one.
    """
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    state = int.from_bytes(digest, "big")
    found, step = -1, 0
    while step < count:
        found = step
        state = (state * 2862933555777941757 + 1) % 2**64
        step = int((found + 1) * (2**31 / ((state >> 33) + 1)))
    return found


def shard_for(queue: str, key: str, count: int) -> str:
    """Return the shard of a queue that a key belongs to."""
    return shard_name(queue, count, shard_index(key, count))


def shards_changed(queue: str, count: int, there: int) -> ShardsChanged:
    """Return the error that a queue has another number of shards than its app declares.

    Args:
        queue: Its name.
        count: What the app declares.
        there: What the broker has; 0 when that is not known.
    """
    return ShardsChanged(
        f"queue {queue} has {there or 'another number of'} shards on the broker, this app declares "
        f"{count}; stop its workers and senders, run `taskq queues reshard {queue}`, and start "
        "them again, or change the number back"
    )
