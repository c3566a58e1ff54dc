"""Publish and subscribe as data: bindings, and what matches them; pure.

RabbitMQ matches by itself; the embedded broker asks the functions below, which give its answers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from taskq.errors import ConfigError

TOPICS: Final = "taskq.topics"
"""Exchange of what is published; on the embedded broker only a name."""
HEADERS: Final = "taskq.headers"
"""Exchange behind it that matches headers."""
PUBLISHED: Final = "taskq.published"
"""Task name of a message that is on its way to whoever subscribed."""
KEY: Final = "taskq-key"
"""Header with the key under which a message was published."""
REPLY: Final = "taskq.reply"
"""Task name of the answer to a remote call."""
RPC: Final = "taskq-rpc"
"""Header of a message whose sender waits for an answer."""
QUEUE_PREFIX: Final = "taskq.sub."
MAX_KEY_BYTES: Final = 255
AWAY_MS: Final = 60_000
"""How long a broadcast queue of RabbitMQ outlives its worker, in milliseconds."""


@dataclass(frozen=True, slots=True)
class Binding:
    """What a subscriber's queue gets.

    Attributes:
        queue: The queue, without prefix.
        task: Registered name of the subscriber.
        pattern: Pattern of keys; empty when `headers` decide.
        headers: Headers to match, with `x-match` `all` (the default) or `any`; None for none.
        broadcast: Whether each worker has a queue of its own, which goes with it.
    """

    queue: str
    task: str
    pattern: str = ""
    headers: Mapping[str, Any] | None = None
    broadcast: bool = False

    def to_list(self) -> list[Any]:
        """Return the fields in order, for msgpack."""
        return [self.queue, self.task, self.pattern, self.headers, self.broadcast]

    def of_worker(self, worker: str) -> "Binding":
        """Return the binding as it is in one worker: a broadcast queue bears the worker's name."""
        if not self.broadcast:
            return self
        plain = "".join(ch if ch.isascii() and ch.isalnum() else "-" for ch in worker)
        queue = f"{self.queue}.{plain}"[:200]
        return Binding(queue, self.task, self.pattern, self.headers, True)


def check_pattern(pattern: str) -> str:
    """Return a pattern of keys, checked.

    Raises:
        ConfigError: Unless its words are texts, `*` or `#`, and it fits into 255 bytes.
    """
    words = pattern.split(".") if isinstance(pattern, str) else [""]
    if not all(words) or len(pattern.encode()) > MAX_KEY_BYTES:
        raise ConfigError(
            f"pattern {pattern!r:.80} is not usable; write words with dots between them, `*` for "
            "one word, `#` for any number"
        )
    for word in words:
        if len(word) > 1 and ("*" in word or "#" in word):
            raise ConfigError(
                f"in pattern {pattern!r:.80}, {word!r} matches nothing but itself: `*` and `#` "
                "stand for whole words"
            )
    return pattern


def check_key(key: str) -> str:
    """Return a key to publish under, checked.

    Raises:
        ConfigError: Unless it is a text of 1 to 255 bytes.
    """
    if not isinstance(key, str) or not 0 < len(key.encode()) <= MAX_KEY_BYTES:
        raise ConfigError(f"key {key!r:.80} is not usable; use a text of 1 to 255 bytes")
    return key


def check_match(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return headers to match, checked.

    Raises:
        ConfigError: For another `x-match` than `all` and `any`, no header, or a value that is
            neither a text nor an integer nor a truth value.
    """
    if headers.get("x-match", "all") not in ("all", "any"):
        raise ConfigError(f"x-match is {headers['x-match']!r:.40}; use 'all' or 'any'")
    wanted = {name: value for name, value in headers.items() if not name.startswith("x-")}
    if not wanted:
        raise ConfigError("name at least one header to match")
    for name, value in wanted.items():
        if not isinstance(value, str | int):
            raise ConfigError(
                f"header {name!r} is {value!r:.40}; match texts, integers or booleans"
            )
    return {"x-match": "all", **headers}


def key_matches(pattern: str, key: str) -> bool:
    """Return whether a key matches a pattern: `*` is one word, `#` any number, none included."""
    return _words_match(pattern.split("."), key.split("."))


def _words_match(pattern: list[str], key: list[str]) -> bool:
    # Row by row over the pattern: `reach` says at which words of the key the rest may begin.
    reach = [True] + [False] * len(key)
    for word in pattern:
        if word == "#":
            for at in range(1, len(reach)):
                reach[at] = reach[at] or reach[at - 1]
            continue
        moved = [False] * len(reach)
        for at, part in enumerate(key):
            moved[at + 1] = reach[at] and word in ("*", part)
        reach = moved
    return reach[-1]


def headers_match(wanted: Mapping[str, Any], headers: Mapping[str, Any]) -> bool:
    """Return whether headers match a binding's: all of them, or with `x-match` `any` one."""
    found = [
        name in headers and _same(headers[name], value)
        for name, value in wanted.items()
        if not name.startswith("x-")
    ]
    return any(found) if wanted.get("x-match") == "any" else all(found)


def _same(one: Any, other: Any) -> bool:
    # True is 1 in Python, but not in AMQP.
    return bool(one == other and isinstance(one, bool) == isinstance(other, bool))


def matches(binding: Binding, key: str, headers: Mapping[str, Any]) -> bool:
    """Return whether a message that is published goes to a binding's queue.

    Args:
        binding: The binding.
        key: Key of the message.
        headers: Its headers.
    """
    if binding.headers is not None:
        return headers_match(binding.headers, headers)
    return key_matches(binding.pattern, key)
