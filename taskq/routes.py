r"""Which queue a task goes to when neither its call nor its declaration says so.

Rules are tried in order and the first that matches wins::

    TaskQ("shop", routes=[
        ("mail.*", "mail"),
        ("reports.*", {"queue": "reports", "priority": 2}),
        (re.compile(r"etl\.(daily|weekly)\..*"), "etl"),
        by_customer,
    ])
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import translate
from typing import Any, Final

from taskq.brokers.shapes import check_queue_name
from taskq.config import nearest, read_content
from taskq.errors import ConfigError

Target = str | Mapping[str, Any]
"""A queue's name, or a map with `queue` and `priority`, of which one may be missing."""
Router = Callable[[str, Sequence[Any], Mapping[str, Any], Mapping[str, Any]], Target | None]
"""Called with name, args, kwargs and options of a call; None leaves it to the next rule."""
Rule = tuple[str | re.Pattern[str], Target] | Router

_FIELDS: Final = ("queue", "priority")


@dataclass(frozen=True, slots=True)
class Route:
    """Where a rule sends a task.

    Attributes:
        queue: Queue, or empty when the rule gives only a priority.
        priority: 0 to 9, or None when the rule gives only a queue.
    """

    queue: str = ""
    priority: int | None = None


class Routes:
    """The rules of an app, in order; `app.routes`."""

    def __init__(
        self,
        rules: Iterable[Rule] | Mapping[str, Target] = (),
        before: Iterable[tuple[re.Pattern[str], Route]] = (),
    ) -> None:
        """Check and keep rules.

        Args:
            rules: Pairs (pattern of task names, target) and functions, or a map of patterns to
                targets.
            before: Checked rules that come first.

        Raises:
            ConfigError: For a rule that is neither, or whose pattern or target is not usable.
        """
        self._rules: list[tuple[re.Pattern[str], Route] | Router] = [*before]
        if isinstance(rules, str) or not isinstance(rules, Iterable):
            raise ConfigError(f"routes is {rules!r:.80}; use a list of (pattern, queue) pairs")
        for rule in rules.items() if isinstance(rules, Mapping) else rules:
            self._rules.append(_checked(rule))

    def __len__(self) -> int:
        return len(self._rules)

    def add(self, pattern: str | re.Pattern[str] | Router, target: Target | None = None) -> None:
        """Put a rule behind the others.

        Args:
            pattern: Task names, with `*`, `?` and `[...]`, or as a compiled expression that the
                whole name must match; or a function, which stands alone.
            target: Queue, or a map with `queue` and `priority`.

        Raises:
            ConfigError: If the rule is not usable.
        """
        if target is None and callable(pattern):
            self._rules.append(_checked(pattern))
        else:
            self._rules.append(_checked((pattern, target)))

    def find(
        self,
        name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: Mapping[str, Any],
    ) -> Route | None:
        """Return where a call goes, None when no rule matches.

        Args:
            name: The task's.
            args: Positional arguments.
            kwargs: Keyword arguments.
            options: What the call and the task's declaration say.

        Raises:
            ConfigError: If a function fails, or returns what is no target.
        """
        for rule in self._rules:
            if isinstance(rule, tuple):
                pattern, route = rule
                if pattern.fullmatch(name):
                    return route
            else:
                found = _ask(rule, name, args, kwargs, options)
                if found is not None:
                    return found
        return None

    def queue_of(self, name: str) -> str:
        """Return the queue that patterns alone give a task, or an empty text.

        A worker consumes it by default. What functions return is not known before a call, so
        their queues are named with `-Q`; a function before a matching pattern hides it.
        """
        for rule in self._rules:
            if not isinstance(rule, tuple):
                continue
            pattern, route = rule
            if pattern.fullmatch(name):
                return route.queue
        return ""


def routes_of_file(environ: Mapping[str, str] | None = None) -> list[tuple[re.Pattern[str], Route]]:
    """Return the rules of `[routes]` in taskq.toml, or of `[tool.taskq.routes]`, in order.

    Args:
        environ: The environment, for TASKQ_CONFIG; the process's own by default.

    Raises:
        ConfigError: If one of them is not usable; the message names the file.
    """
    origin, content = read_content(os.environ if environ is None else environ)
    table = content.get("routes", {})
    if not isinstance(table, dict):
        raise ConfigError(f"[routes] in {origin} is not a table of patterns and queues")
    rules = []
    for pattern, target in table.items():
        where = f"[routes] in {origin}: {pattern!r}"
        if not pattern:
            raise ConfigError(f"{where} is no pattern; use one such as 'mail.*'")
        rules.append((re.compile(translate(pattern)), _target(target, where)))
    return rules


def _checked(rule: Any) -> tuple[re.Pattern[str], Route] | Router:
    if callable(rule):
        return rule  # type: ignore[no-any-return]
    if not isinstance(rule, tuple | list) or len(rule) != 2:
        raise ConfigError(
            f"route {rule!r:.80} is neither a pair (pattern, queue) nor a function "
            "of name, args, kwargs and options"
        )
    pattern, target = rule
    if isinstance(pattern, re.Pattern):
        if not isinstance(pattern.pattern, str):
            raise ConfigError(f"route {pattern!r:.80} matches bytes; task names are text")
        return pattern, _target(target, f"route {pattern.pattern!r}")
    if not isinstance(pattern, str) or not pattern:
        raise ConfigError(f"route {rule!r:.80} begins with no pattern; use one such as 'mail.*'")
    return re.compile(translate(pattern)), _target(target, f"route {pattern!r}")


def _target(target: Any, where: str) -> Route:
    if isinstance(target, str):
        return Route(_queue(target, where))
    if not isinstance(target, Mapping) or not target:
        raise ConfigError(
            f"{where} leads to {target!r:.60}; use a queue's name, or a map with queue and priority"
        )
    for field in target:
        if field not in _FIELDS:
            raise ConfigError(
                f"{where} says {field!r}{nearest(str(field), _FIELDS)}; "
                "a route gives queue and priority"
            )
    queue, priority = target.get("queue"), target.get("priority")
    whole = isinstance(priority, int) and not isinstance(priority, bool)
    if priority is not None and not (whole and 0 <= priority <= 9):
        raise ConfigError(f"{where} gives priority {priority!r}; use 0 (lowest) to 9")
    return Route("" if queue is None else _queue(queue, where), priority)


def _queue(name: Any, where: str) -> str:
    try:
        return check_queue_name(name)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _ask(
    router: Router,
    name: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Route | None:
    label = f"router {getattr(router, '__qualname__', repr(router))}"
    try:
        target = router(name, args, kwargs, options)
    # Whatever the user's function raises: the sender should learn which one it was.
    except Exception as error:
        raise ConfigError(f"{label} failed for task {name}: {error!r}") from error
    return None if target is None else _target(target, f"{label} for task {name}")
