"""The time limits of one call: checked against each other and against the task's own."""

import math
from collections.abc import Mapping
from typing import Any, Final

from taskq.errors import ConfigError
from taskq.retry import MAX_DELAY_S

DECLARED: Final = "declared_limits"
"""Among a task's defaults: its own (hard, soft) limits in seconds, None where there is none."""


def call_limits(task: str, options: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Return the (hard, soft) limits of a call in whole seconds; None where it brings none.

    Args:
        task: Registered name, for the error.
        options: The call's options over the task's defaults.

    Raises:
        ConfigError: If one is no whole number of seconds above 0, or the soft limit that holds
            for the call is not below the hard one.
    """
    hard, soft = _limit(options, "time_limit"), _limit(options, "soft_time_limit")
    if hard is None and soft is None:
        return None, None
    declared_hard, declared_soft = options.get(DECLARED) or (None, None)
    whole_hard = declared_hard if hard is None else hard
    whole_soft = declared_soft if soft is None else soft
    if whole_hard is not None and whole_soft is not None and whole_soft >= whole_hard:
        mixed = hard is None or soft is None
        raise ConfigError(
            f"{task}: soft_time_limit {whole_soft:g} must be below time_limit {whole_hard:g}"
            + ("; one of them is the task's own, give both" if mixed else "")
        )
    return hard, soft


def _limit(options: Mapping[str, Any], name: str) -> int | None:
    """Return a per-call limit in whole seconds: AMQP headers carry no fractions here."""
    value = options.get(name)
    if value is None:
        return None
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not 0 < number <= MAX_DELAY_S:
        raise ConfigError(f"{name} is {value!r}; use seconds above 0")
    if number != int(number):
        raise ConfigError(f"{name} of a call is in whole seconds, not {value!r}")
    return int(number)


def carried_limits(options: Mapping[str, Any]) -> list[int | None] | None:
    """Return the `timelimit` header of a later step from its signature; None for none.

    The signature may be anybody's, so what cannot be a limit is left out.
    """
    limits = [_carried(options.get(name)) for name in ("time_limit", "soft_time_limit")]
    return limits if any(limits) else None


def _carried(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return math.ceil(value) if 0 < value <= MAX_DELAY_S else None
