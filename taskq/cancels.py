"""Cancel rules: which tasks are cancelled by workflow, name or header, as pure data.

A rule is stored where results are, so that it holds with no worker alive. Workers keep all rules
in a `RuleBook` and learn what is new with every batch that they admit.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgpack

from taskq import clock
from taskq.errors import ConfigError, DecodeError
from taskq.ids import sent_ms
from taskq.message import REPLAYS, Message

RULE_TTL_S: Final = 367 * 86400
"""How long a rule is kept: longer than a task may be delayed."""
_FORM: Final = 1
_MAX_TEXT_BYTES: Final = 255
_SWEEP_EVERY: Final = 1000


@dataclass(frozen=True, slots=True)
class CancelRule:
    """Which tasks a cancel means; what is given must all be so.

    Attributes:
        root_id: First task of the workflow; empty for any.
        task: Registered name; empty for any.
        headers: Header to value, compared as text; empty for any.
        at_ms: When it was cancelled, as epoch ms.
        ends_ms: Until when the rule is kept, as epoch ms.
    """

    root_id: str = ""
    task: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    at_ms: int = 0
    ends_ms: int = 0

    def __str__(self) -> str:
        words = [f"root {self.root_id}"] if self.root_id else []
        words += [f"task {self.task}"] if self.task else []
        words += [f"header {name}={value}" for name, value in sorted(self.headers.items())]
        return ", ".join(words)

    def meant(self, message: Message, root_id: str) -> bool:
        """Return whether it names this task, whenever that was sent."""
        if self.root_id and self.root_id != root_id:
            return False
        if self.task and self.task != message.task:
            return False
        sent = message.headers
        return all(
            name in sent and header_text(sent[name]) == value
            for name, value in self.headers.items()
        )

    def hits(self, message: Message, root_id: str) -> bool:
        """Return whether it cancels this task.

        By name and header only what was sent before the cancel: the next one is meant to run. A
        workflow is cancelled with whatever it still sends, but for dead letters that an operator
        replays later. A message that does not tell when it was sent (Celery's) is spared:
        dropping a new task is worse than running an old one.
        """
        if not self.meant(message, root_id):
            return False
        if self.root_id and REPLAYS not in message.headers:
            return True
        at_ms = sent_ms(message)
        return at_ms is not None and at_ms <= self.at_ms


def root_of(message: Message) -> str:
    """Return the first task of a message's workflow: the task itself where none is named."""
    root_id = message.headers.get("root_id")
    return root_id if isinstance(root_id, str) and root_id else message.id


def header_text(value: Any) -> str:
    """Return a header's value as the text that rules compare."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return str(value)


def make_rule(
    root_id: str | None,
    task: str | None,
    headers: Mapping[str, Any] | None,
    at_ms: int,
    ttl_s: int = RULE_TTL_S,
) -> CancelRule:
    """Return a checked rule.

    Args:
        root_id: First task of the workflow, or None for any.
        task: Registered name, or None for any.
        headers: Header to value, or None for any.
        at_ms: When it was cancelled, as epoch ms.
        ttl_s: How long it is kept, in seconds.

    Raises:
        ConfigError: If nothing is named, or something is not usable.
    """
    for name, value in (("root_id", root_id), ("task", task)):
        if value is not None and not _is_text(value):
            raise ConfigError(f"{name} is {value!r:.80}; use a text of 1 to 255 bytes")
    if headers is not None and not (isinstance(headers, Mapping) and all(map(_is_text, headers))):
        raise ConfigError(f"headers is {headers!r:.80}; use a map of header names to values")
    if not (root_id or task or headers):
        raise ConfigError(
            "nothing says what to cancel; give root_id=, task= or headers={'name': 'value'}"
        )
    if not isinstance(ttl_s, int) or isinstance(ttl_s, bool) or not 1 <= ttl_s <= 10**9:
        raise ConfigError(f"ttl_s is {ttl_s!r}; use whole seconds, 1 or more")
    texts = {name: header_text(value) for name, value in (headers or {}).items()}
    return CancelRule(root_id or "", task or "", texts, at_ms, at_ms + ttl_s * 1000)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value.encode()) <= _MAX_TEXT_BYTES


def pack_rule(rule: CancelRule) -> bytes:
    """Return the stored form of a rule."""
    packed: bytes = msgpack.packb(
        (_FORM, rule.root_id, rule.task, dict(rule.headers), rule.at_ms, rule.ends_ms)
    )
    return packed


def unpack_rule(data: bytes) -> CancelRule:
    """Read the stored form.

    Raises:
        DecodeError: If it is none, or of a newer taskq.
    """
    try:
        form, root_id, task, headers, at_ms, ends_ms = msgpack.unpackb(data)
    # Whatever msgpack raises on foreign bytes.
    except Exception as error:
        raise DecodeError(f"the stored cancel rule is not readable: {error}") from error
    if form != _FORM:
        raise DecodeError(f"the stored cancel rule has form {form!r}, this taskq reads {_FORM}")
    return CancelRule(root_id, task, headers, at_ms, ends_ms)


class RuleBook:
    """The rules that a worker knows, found by what they name.

    Attributes:
        last: Number of the newest rule; the store gives those after it.
    """

    def __init__(self) -> None:
        self.last = 0
        self._rules: dict[tuple[str, str], dict[frozenset[tuple[str, str]], CancelRule]] = {}
        self._learned = 0

    def learn(self, news: Iterable[tuple[int, bytes]]) -> None:
        """Take in rules with their numbers."""
        now_ms = clock.now_ms()
        for number, data in news:
            self.last = max(self.last, number)
            try:
                rule = unpack_rule(data)
            except DecodeError:
                # A newer taskq's: its workers know what it means, and one that stopped over it
                # would run nothing at all.
                continue
            if rule.ends_ms <= now_ms:
                continue
            self._rules.setdefault((rule.root_id, rule.task), {})[
                frozenset(rule.headers.items())
            ] = rule
            self._learned += 1
            if self._learned % _SWEEP_EVERY == 0:
                self._sweep(now_ms)

    def hit(self, message: Message, root_id: str) -> CancelRule | None:
        """Return a rule that cancels this task, or None.

        Args:
            message: The task's message.
            root_id: First task of its workflow.
        """
        rules = self._rules
        if not rules:
            return None
        now_ms = clock.now_ms()
        task = message.task
        for key in ((root_id, ""), ("", task), (root_id, task), ("", "")):
            for rule in rules.get(key, {}).values():
                if rule.ends_ms > now_ms and rule.hits(message, root_id):
                    return rule
        return None

    def _sweep(self, now_ms: int) -> None:
        for key, same in list(self._rules.items()):
            kept = {names: rule for names, rule in same.items() if rule.ends_ms > now_ms}
            if kept:
                self._rules[key] = kept
            else:
                del self._rules[key]
