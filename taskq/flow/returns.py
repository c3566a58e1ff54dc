"""How what was taken comes back: releases, renewals, claims of senders. Pure, as `rules`."""

from taskq.flow.asks import KEEP_US, Cells, Release
from taskq.flow.declared import Claim
from taskq.flow.rules import line_of


def release(given: Release, cells: Cells, now: int) -> str:
    """Take back what a run held; return `opened`, `closed` or nothing, for its breaker."""
    if given.unique and given.outcome in ("s", "f", "e"):
        state = cells.get(given.unique)
        if state and state[0] == given.id and given.nonce in ("", state[2]):
            cells.drop(given.unique)
    if given.idempotency:
        _release_key(given, cells, now)
    if given.slots:
        _release_slot(given, cells, now)
    return _record(given, cells, now)


def _release_key(given: Release, cells: Cells, now: int) -> None:
    if given.idempotency is None:
        return
    cell, span = given.idempotency
    state = cells.get(cell)
    if given.outcome == "s":
        if not (state and state[0] and state[2] > now):
            cells.put(cell, [1, given.id, now + span, ""], span)
    elif state and state[:2] == [0, given.id] and given.nonce in ("", state[3]):
        cells.drop(cell)


def _release_slot(given: Release, cells: Cells, now: int) -> None:
    cell = given.slots
    held = cells.holder(cell, given.id)
    if held is None or given.nonce not in ("", held.nonce):
        return
    cells.unhold(cell, given.id)
    if given.outcome != "b":
        tail, mean = line_of(cells, cell)
        took = now - held.since_us
        mean = took if mean <= 0 else mean + (took - mean) * 0.2
        cells.put(cell, [tail, mean], max(0, tail - now) + KEEP_US)


def _record(given: Release, cells: Cells, now: int) -> str:
    if not given.breaker:
        return ""
    cell, failures, window, reset = given.breaker
    fails, until, probe, _until, tail = cells.get(cell) or [[], 0, "", 0, 0]
    failed = given.tripped and given.outcome in ("f", "r")
    if until:
        if not given.probe or probe != given.id:
            return ""
        if given.outcome == "b":
            cells.put(cell, [fails, until, "", 0, tail], max(0, tail - now) + KEEP_US)
            return ""
        if not failed:
            cells.drop(cell)
            return "closed"
        cells.put(cell, [[now], now + reset, "", 0, 0], reset + KEEP_US)
        return "opened"
    if not failed:
        return ""
    fails = [at for at in fails if at > now - window] + [now]
    if len(fails) < failures:
        cells.put(cell, [fails, 0, "", 0, 0], window)
        return ""
    cells.put(cell, [[now], now + reset, "", 0, 0], reset + KEEP_US)
    return "opened"


def renew(given: Release, lease_us: int, cells: Cells, now: int) -> None:
    """Keep what a run holds for another lease."""
    if given.idempotency:
        cell = given.idempotency[0]
        state = cells.get(cell)
        if state and not state[0] and state[2] > now and state[3] == given.nonce:
            cells.put(cell, [0, given.id, now + lease_us, given.nonce], lease_us)
    if given.slots:
        held = cells.holder(given.slots, given.id)
        if held is not None and held.nonce == given.nonce:
            cells.hold(given.slots, given.id, held._replace(until_us=now + lease_us))
    if given.breaker and given.probe:
        cell = given.breaker[0]
        state = cells.get(cell)
        if state and state[1] and state[2] == given.id:
            until = now + lease_us
            ttl = max(0, state[4] - now) + lease_us + KEEP_US
            cells.put(cell, [state[0], state[1], given.id, until, state[4]], ttl)


def claim(item: Claim, cells: Cells, now: int) -> str:
    """Claim a unique key for a message that is about to be sent; return the holder's id."""
    cell, task_id, span, ends = item
    state = cells.get(cell)
    # Who has just learned that the holder ended may send the next one.
    if state and state[1] > now and not (ends and cells.finished(state[0])):
        return str(state[0])
    cells.put(cell, [task_id, now + span, ""], span)
    return task_id


def unclaim(cell: str, task_id: str, cells: Cells) -> None:
    """Undo a claim whose message was not sent."""
    state = cells.get(cell)
    if state and state[0] == task_id and state[2] == "":
        cells.drop(cell)
