"""What flow control decides: pure functions of an ask, the cells, and the moment.

The Redis store has the same rules in Lua (`stores/redis_script.py`); a property test holds them
against each other, so both change together. Moments and spans are whole microseconds.

What waits is given a moment to come back at, one after the other in the cell's `tail`, so that a
thousand waiting messages cost a look each and not a thousand looks at each free place.
"""

import math
from typing import Any, Final

from taskq.flow.asks import (
    DONE,
    DUPLICATE,
    GO,
    KEEP_US,
    SETTINGS,
    SUPERSEDED,
    WAIT,
    Ask,
    Cells,
    Holder,
    Verdict,
)

HORIZON_US: Final = 1_000_000
"""A start may be granted so far ahead; the worker holds the message for that long."""
LOOK_US: Final = 1_000_000
"""Longest span between two looks at something that is taken."""
_MIN_GAP_US: Final = 1_000
_BREAKER_GAP_US: Final = 2_000
_BUDGET_GAP_US: Final = (50_000, 10_000_000)


def judge(ask: Ask, cells: Cells, now: int) -> Verdict:
    """Decide on one message, and take what it needs when it may start.

    A gate at which it must wait changes nothing but that gate's line; all others stay as they are.
    """
    settings = cells.get(SETTINGS) or [0, {}]
    version, changed = settings
    waited = ask.waited
    if ask.at_us > now + HORIZON_US:
        if ask.version == version:
            # Halfway: nothing changed, so its place stays.
            return Verdict(WAIT, ask.at_us - now, waited, ask.at_us, version)
        waited = waited[:-1]
    limits = _limits(ask, changed)
    for letter, gate in _GATES:
        verdict = gate(ask, cells, now, waited, limits)
        if verdict is not None:
            if verdict.code == WAIT:
                verdict.at_us = now + verdict.wait_us
                verdict.waited = waited.replace(letter, "") + letter
                verdict.version = version
            return verdict
    probe = _take(ask, cells, now, limits)
    start = _take_token(ask, cells, now, waited, limits)
    return Verdict(GO, start - now, probe=probe)


Limits = tuple[tuple[int, int] | None, int]
"""((interval, burst) or None, slots or 0) as they hold now."""


def _limits(ask: Ask, changed: dict[str, Any]) -> Limits:
    rate = ask.rate[1:] if ask.rate else None
    slots = ask.slots[1] if ask.slots else 0
    if changed:
        if rate and "r" + ask.task in changed:
            interval, burst = changed["r" + ask.task]
            rate = (interval, burst)
        if slots and "c" + ask.task in changed:
            slots = changed["c" + ask.task]
    return rate, slots


def _unique(ask: Ask, cells: Cells, now: int, waited: str, limits: Limits) -> Verdict | None:
    if not ask.unique:
        return None
    cell, mode, span, claimed, _sent = ask.unique
    state = cells.get(cell)
    holder = state[0] if state and state[1] > now else ""
    if mode == "b":
        return _debounced(ask, cells, now, waited, holder)
    if mode == "w" and claimed:
        return None
    if holder not in ("", ask.id) and mode != "w" and cells.finished(holder):
        # Its end is stored, and its claim is about to be given back.
        holder = ""
    if holder in ("", ask.id):
        until = state[1] if state and holder and mode == "w" else now + span
        cells.put(cell, [ask.id, until, ask.nonce], until - now)
        return None
    if ask.attempt == 0 and not ask.again and not waited:
        return Verdict(DUPLICATE, other=holder)
    # It was accepted before: it cannot be dropped as a second call now.
    return Verdict(WAIT, LOOK_US) if mode == "d" else None


def _debounced(ask: Ask, cells: Cells, now: int, waited: str, holder: str) -> Verdict | None:
    if ask.unique is None or ask.attempt:
        return None
    cell, _mode, span, _claimed, sent = ask.unique
    if "u" not in waited:
        state = cells.get(cell)
        sent = sent or now
        if state and holder not in ("", ask.id) and state[3] > sent:
            # Messages may overtake each other on their way.
            return Verdict(SUPERSEDED, other=holder)
        cells.put(cell, [ask.id, now + span + KEEP_US, ask.nonce, sent], span + KEEP_US)
        return Verdict(WAIT, span)
    return None if holder in ("", ask.id) else Verdict(SUPERSEDED, other=holder)


def _idempotency(ask: Ask, cells: Cells, now: int, waited: str, limits: Limits) -> Verdict | None:
    if not ask.idempotency:
        return None
    state = cells.get(ask.idempotency)
    if not state or state[2] <= now:
        return None
    done, holder = state[0], state[1]
    if done:
        return Verdict(DONE, other=holder)
    return None if holder == ask.id else Verdict(WAIT, LOOK_US)


def _breaker(ask: Ask, cells: Cells, now: int, waited: str, limits: Limits) -> Verdict | None:
    if not ask.breaker:
        return None
    cell = ask.breaker[0]
    state = cells.get(cell)
    if not state or state[1] == 0:
        return None
    fails, until, probe, probe_until, tail = state
    if now >= until and (probe in ("", ask.id) or probe_until <= now):
        return None
    tail = max(until if now < until else now, tail) + _BREAKER_GAP_US
    cells.put(cell, [fails, until, probe, probe_until, tail], tail - now + KEEP_US)
    return Verdict(WAIT, tail - now)


def _budget(ask: Ask, cells: Cells, now: int, waited: str, limits: Limits) -> Verdict | None:
    if not ask.budget or ask.attempt == 0:
        return None
    cell, _share, per_us, burst = ask.budget
    tokens, tail = _tokens(cells, cell, per_us, burst, now)
    if tokens >= 1 and ("g" in waited or tail <= now):
        return None
    shortest, longest = _BUDGET_GAP_US
    tail = max(now, tail) + min(longest, max(shortest, math.floor(1 / per_us)))
    cells.put(cell, [tokens, now, tail], tail - now + KEEP_US)
    return Verdict(WAIT, tail - now)


def _tokens(cells: Cells, cell: str, per_us: float, burst: int, now: int) -> tuple[float, int]:
    state = cells.get(cell)
    if not state:
        return burst, 0
    tokens, at, tail = state
    return min(burst, tokens + max(0, now - at) * per_us), tail


def _slots(ask: Ask, cells: Cells, now: int, waited: str, limits: Limits) -> Verdict | None:
    if not ask.slots:
        return None
    cell, bound = ask.slots[0], limits[1]
    if cells.holder(cell, ask.id) is not None:
        return None
    tail, mean = line_of(cells, cell)
    if cells.held(cell) < bound and ("c" in waited or tail <= now):
        return None
    # Looks come twice as often as places get free, judged by how long holders took, and take now.
    first = cells.first(cell)
    took = mean if first is None else max(mean, now - first.since_us)
    tail = max(now, tail) + math.floor(min(LOOK_US, max(_MIN_GAP_US, took / (2 * bound))))
    cells.put(cell, [tail, mean], tail - now + KEEP_US)
    return Verdict(WAIT, tail - now)


def line_of(cells: Cells, cell: str) -> tuple[int, float]:
    """Return the end of the line for a cell's slots, and how long holders took."""
    state = cells.get(cell)
    # An older form of the cell had its holders inside; they are not counted.
    return (state[0], state[1]) if state and len(state) == 2 else (0, 0)


def _rate(ask: Ask, cells: Cells, now: int, waited: str, limits: Limits) -> Verdict | None:
    if not ask.rate or limits[0] is None:
        return None
    interval, burst = limits[0]
    actual, tail = _arrivals(cells, ask.rate[0])
    start = max(now, (actual if "r" in waited else tail) - (burst - 1) * interval)
    if start <= now + HORIZON_US:
        return None
    start = max(now, tail - (burst - 1) * interval)
    tail = max(start, tail) + interval
    cells.put(ask.rate[0], [actual, tail], tail - now + KEEP_US)
    return Verdict(WAIT, start - now)


def _arrivals(cells: Cells, cell: str) -> tuple[int, int]:
    state = cells.get(cell)
    return (state[0], state[1]) if state else (0, 0)


_GATES: Final = (
    ("u", _unique),
    ("i", _idempotency),
    ("b", _breaker),
    ("g", _budget),
    ("c", _slots),
    ("r", _rate),
)


def _take(ask: Ask, cells: Cells, now: int, limits: Limits) -> bool:
    """Take what a start needs, all but the token; return whether it is a breaker's probe."""
    if ask.unique:
        cell, mode = ask.unique[0], ask.unique[1]
        state = cells.get(cell)
        # A debounced call stays in its cell: one before it may still be on its way, and is late.
        if mode == "s" and state and state[0] == ask.id:
            cells.drop(cell)
    if ask.idempotency:
        state = [0, ask.id, now + ask.lease_us, ask.nonce]
        cells.put(ask.idempotency, state, ask.lease_us)
    if ask.budget:
        cell, share, per_us, burst = ask.budget
        tokens, tail = _tokens(cells, cell, per_us, burst, now)
        tokens = min(burst, tokens + share) if ask.attempt == 0 else max(0, tokens - 1)
        cells.put(cell, [tokens, now, tail], max(0, tail - now) + KEEP_US)
    if ask.slots:
        cell = ask.slots[0]
        cells.hold(cell, ask.id, Holder(now + ask.lease_us, ask.nonce, now))
    return _take_probe(ask, cells, now)


def _take_probe(ask: Ask, cells: Cells, now: int) -> bool:
    if not ask.breaker:
        return False
    cell = ask.breaker[0]
    state = cells.get(cell)
    if not state or state[1] == 0:
        return False
    fails, until, _probe, _probe_until, tail = state
    state = [fails, until, ask.id, now + ask.lease_us, tail]
    cells.put(cell, state, max(0, tail - now) + ask.lease_us + KEEP_US)
    return True


def _take_token(ask: Ask, cells: Cells, now: int, waited: str, limits: Limits) -> int:
    """Take a token and return when the run may start."""
    if not ask.rate or limits[0] is None:
        return now
    interval, burst = limits[0]
    actual, tail = _arrivals(cells, ask.rate[0])
    promised = "r" in waited
    start = max(now, (actual if promised else tail) - (burst - 1) * interval)
    actual = max(start, actual) + interval
    tail = max(tail, actual) if promised else max(max(start, tail) + interval, actual)
    cells.put(ask.rate[0], [actual, tail], tail - now + KEEP_US)
    return start
