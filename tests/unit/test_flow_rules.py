"""The rules in virtual time: bounds that hold for any arrivals, and nobody starves."""

import heapq
import random
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
from flow_cells import Memory, judge, release

from taskq.flow import returns, rules
from taskq.flow.asks import DONE, DUPLICATE, GO, SUPERSEDED, WAIT, Ask, Release, Verdict
from taskq.flow.declared import Claim

S = 1_000_000
LEASE = 30 * S


class World:
    """Messages that arrive, wait as they are told, and run for a while."""

    def __init__(self, make: Callable[[str], Ask], late_us: Callable[[], int] = lambda: 0) -> None:
        self.cells = Memory()
        self.starts: dict[str, int] = {}
        self.looks: dict[str, int] = defaultdict(int)
        self.running: list[tuple[int, Ask]] = []
        self.most = 0
        self._make = make
        self._late_us = late_us
        self._queue: list[tuple[int, int, str, Verdict | None]] = []
        self._number = 0
        self._runs: list[tuple[int, int, Ask]] = []

    def arrive(self, at_us: int, task_id: str, waited: Verdict | None = None) -> None:
        self._number += 1
        heapq.heappush(self._queue, (at_us, self._number, task_id, waited))

    def run(self, took_us: Callable[[], int], until_us: int = 10**13) -> None:
        while self._queue:
            now, _, task_id, waited = heapq.heappop(self._queue)
            if now > until_us:
                return
            while self._runs and self._runs[0][0] <= now:
                end, _, done = heapq.heappop(self._runs)
                self._release(done, end)
            self._number += 1
            ask = self._make(task_id)
            if waited is not None:
                ask = ask._replace(waited=waited.waited, at_us=waited.at_us, version=waited.version)
            verdict = judge(ask, self.cells, now)
            self.looks[task_id] += 1
            if verdict.code == GO:
                self.starts[task_id] = now + verdict.wait_us
                heapq.heappush(self._runs, (now + verdict.wait_us + took_us(), self._number, ask))
                self.most = max(self.most, len(self._runs))
            else:
                assert verdict.code == WAIT
                self.arrive(now + verdict.wait_us + self._late_us(), task_id, verdict)

    def _release(self, ask: Ask, now: int) -> None:
        slots = ask.slots[0] if ask.slots else ""
        release(Release(ask.id, ask.nonce, "s", slots=slots), self.cells, now)


def limited(interval: int, burst: int) -> Callable[[str], Ask]:
    return lambda name: Ask("t", name, 0, False, name, LEASE, rate=("r", interval, burst))


@pytest.mark.parametrize("seed", range(8))
def test_no_window_has_more_starts_than_the_rate_and_one_burst(seed: int) -> None:
    """Whenever messages come, and however late they come back."""
    rng = random.Random(seed)
    interval, burst = rng.choice([(100_000, 1), (100_000, 5), (1000, 100), (3 * S, 2)])
    world = World(limited(interval, burst), lambda: rng.choice([0, 0, rng.randrange(2 * S)]))
    for number in range(300):
        world.arrive(rng.choice([S, rng.randrange(60 * S)]), f"m{number}")

    world.run(lambda: 0)

    starts = sorted(world.starts.values())
    assert len(starts) == 300
    for first in range(300):
        for last in range(first, min(300, first + 3 * burst + 40)):
            allowed = burst + (starts[last] - starts[first]) / interval
            assert last - first + 1 <= allowed + 1e-6


def test_a_backlog_starts_at_the_rate_with_a_few_looks_each() -> None:
    """Not slower than the limit allows, and without turning in circles."""
    world = World(limited(100_000, 1))
    for number in range(600):
        world.arrive(S, f"m{number}")

    world.run(lambda: 0)

    starts = sorted(world.starts.values())
    assert starts[-1] - starts[0] == 599 * 100_000
    assert max(world.looks.values()) <= 2


def test_messages_that_all_come_back_at_once_do_not_break_the_limit() -> None:
    """After an hour without workers every promised moment has passed."""
    world = World(limited(100_000, 1))
    for number in range(100):
        world.arrive(S, f"m{number}", Verdict(WAIT, 0, "r", S // 2, 0))

    world.run(lambda: 0)

    starts = sorted(world.starts.values())
    assert starts[-1] - starts[0] >= 99 * 100_000


def slotted(bound: int) -> Callable[[str], Ask]:
    return lambda name: Ask("t", name, 0, False, name, 10_000 * S, slots=("c", bound))


@pytest.mark.parametrize(("bound", "took_us"), [(1, 10_000), (3, 200_000), (3, 5 * S), (10, S)])
def test_slots_are_never_exceeded_and_hardly_idle(bound: int, took_us: int) -> None:
    """A thousand waiting messages keep the slots busy at a few looks each."""
    rng = random.Random(bound)
    world = World(slotted(bound))
    for number in range(200):
        world.arrive(S, f"m{number}")

    world.run(lambda: rng.randrange(took_us // 2, took_us * 3 // 2))

    assert len(world.starts) == 200
    assert world.most <= bound
    ideal = 200 * took_us / bound
    assert max(world.starts.values()) - S < 2 * ideal + 5 * S
    assert sum(world.looks.values()) < 200 * 12


def test_a_lapsed_lease_frees_the_slot() -> None:
    """Its holder died, or was away for longer than it may be."""
    cells = Memory()
    ask = slotted(1)
    first, second = ask("a"), ask("b")
    first, second = first._replace(lease_us=LEASE), second._replace(lease_us=LEASE)

    assert judge(first, cells, 0).code == GO
    assert judge(second, cells, LEASE - 1).code == WAIT
    second = second._replace(waited="c")
    assert judge(second, cells, LEASE + 1).code == GO


def test_a_renewed_lease_lasts() -> None:
    """A long task keeps its slot for as long as its worker lives."""
    cells = Memory()
    first, second = slotted(1)("a"), slotted(1)("b")
    first = first._replace(lease_us=LEASE)
    judge(first, cells, 0)

    returns.renew(Release("a", "a", "", slots="c"), LEASE, cells, LEASE - 1)

    second = second._replace(waited="c")
    assert judge(second, cells, 2 * LEASE - 2).code == WAIT


def test_a_zombie_gives_back_nothing_that_is_another_ones() -> None:
    """It was given up for dead, and the task started elsewhere under a new nonce."""
    cells = Memory()
    old, new, other = slotted(1)("a"), slotted(1)("a"), slotted(1)("b")
    old, new = old._replace(nonce="old"), new._replace(nonce="new")
    judge(old, cells, 0)
    judge(new, cells, 1)

    release(Release("a", "old", "s", slots="c"), cells, 2)

    assert judge(other, cells, 3).code == WAIT


def test_limits_set_at_run_time_replace_the_declared_ones_at_once() -> None:
    """Also for what waits far ahead: it is asked again on its way."""
    cells = Memory()
    ask = limited(100 * S, 1)
    judge(ask("a"), cells, 0)
    far = judge(ask("b"), cells, 0)
    assert far.wait_us == 100 * S
    on_its_way = ask("b")
    on_its_way = on_its_way._replace(waited=far.waited, at_us=far.at_us, version=far.version)
    assert judge(on_its_way, cells, 50 * S).wait_us == 50 * S

    cells.put(rules.SETTINGS, [1, {"rt": [1000, 1]}], S)
    cells.drop("r")

    assert judge(on_its_way, cells, 50 * S).code == GO


def unique(mode: str, name: str, **fields: Any) -> Ask:
    return Ask("t", name, 0, False, name, LEASE, unique=("u", mode, 100 * S, False, 0), **fields)


def test_unique_until_done_holds_through_the_run() -> None:
    """And ends with it, by whoever holds it."""
    cells = Memory()
    assert judge(unique("d", "a"), cells, 0).code == GO
    refused = judge(unique("d", "b"), cells, 1)

    assert (refused.code, refused.other) == (DUPLICATE, "a")
    release(Release("a", "a", "s", unique="u"), cells, 2)
    assert judge(unique("d", "b"), cells, 3).code == GO


def test_unique_until_start_ends_with_the_start() -> None:
    """The next call may be queued while the first one runs."""
    cells = Memory()
    assert returns.claim(Claim("u", "a", S, True), cells, 0) == "a"
    assert returns.claim(Claim("u", "b", S, True), cells, 0) == "a"
    assert judge(unique("s", "a"), cells, 1).code == GO
    assert returns.claim(Claim("u", "b", S, True), cells, 2) == "b"


def test_a_claim_ends_with_its_task_before_it_is_given_back() -> None:
    """Who got the result and calls again must not get the handle of what is over."""
    cells = Memory()
    returns.claim(Claim("u", "a", S, True), cells, 0)
    cells.ended.add("a")

    assert judge(unique("d", "b"), cells, 1).code == GO
    returns.claim(Claim("v", "a", S, False), cells, 1)
    assert returns.claim(Claim("v", "b", S, False), cells, 2) == "a"
    assert returns.claim(Claim("v", "b", S, True), cells, 2) == "b"


def test_a_claim_ends_by_itself_when_its_message_is_lost() -> None:
    """A queue that was purged must not block a key for ever."""
    cells = Memory()
    returns.claim(Claim("u", "a", S, True), cells, 0)

    assert returns.claim(Claim("u", "b", S, True), cells, S + 1) == "b"


def test_the_latest_call_of_a_debounced_task_runs() -> None:
    """The earlier ones learn that they were replaced."""
    cells = Memory()
    first, second = unique("b", "a"), unique("b", "b")
    waits = [judge(first, cells, 0), judge(second, cells, 10)]
    assert [verdict.code for verdict in waits] == [WAIT, WAIT]
    first, second = first._replace(waited="u"), second._replace(waited="u")

    assert judge(first, cells, 101 * S).code == SUPERSEDED
    assert judge(second, cells, 101 * S).code == GO


def test_an_earlier_debounced_call_that_comes_after_the_run_of_the_latest_does_not_run() -> None:
    """A busy worker looks at it late, or a broker delivers it again: its arguments are old."""
    cells = Memory()
    calls = {name: unique("b", name) for name in "abc"}
    for number, (name, ask) in enumerate(calls.items()):
        calls[name] = ask._replace(unique=("u", "b", S, False, 1000 * (number + 1)))
    first, second, third = calls.values()
    assert [judge(ask, cells, 0).code for ask in (first, second)] == [WAIT, WAIT]
    assert judge(second._replace(waited="u"), cells, S + 1).code == GO

    assert judge(first._replace(waited="u"), cells, S + 2).code == SUPERSEDED
    assert judge(first, cells, S + 3).code == SUPERSEDED
    assert judge(third, cells, S + 4).code == WAIT
    assert judge(third._replace(waited="u"), cells, 2 * S + 5).code == GO


def test_a_debounced_call_that_was_overtaken_on_its_way_does_not_win() -> None:
    """A broker delivers again what another consumer had, behind what was sent later."""
    cells = Memory()
    first, second = unique("b", "a"), unique("b", "b")
    first = first._replace(unique=("u", "b", S, False, 1000))
    second = second._replace(unique=("u", "b", S, False, 2000))
    first = first._replace(again=True)

    assert judge(second, cells, 5000).code == WAIT
    assert judge(first, cells, 6000).code == SUPERSEDED


def test_one_run_succeeds_for_an_idempotency_key() -> None:
    """A second one waits while the first runs, and gets its value when it succeeded."""
    cells = Memory()
    first, second = (Ask("t", name, 0, False, name, LEASE, idempotency="i") for name in "ab")
    assert judge(first, cells, 0).code == GO
    assert judge(second, cells, 1).code == WAIT
    release(Release("a", "a", "s", idempotency=("i", 100 * S)), cells, 2)

    assert judge(second, cells, 3) == Verdict(DONE, other="a")
    assert judge(second, cells, 101 * S).code == GO


def test_a_failed_run_leaves_the_idempotency_key_to_the_next() -> None:
    """Only a success counts."""
    cells = Memory()
    first, second = (Ask("t", name, 0, False, name, LEASE, idempotency="i") for name in "ab")
    judge(first, cells, 0)
    release(Release("a", "a", "f", idempotency=("i", 100 * S)), cells, 2)

    assert judge(second, cells, 3).code == GO


class Broken:
    """A task behind a breaker that opens at the second failure in 60 s, for 30 s."""

    def __init__(self) -> None:
        self.cells = Memory()

    def judge(self, name: str, now: int) -> Verdict:
        ask = Ask("t", name, 0, False, name, LEASE, breaker=("b", 30 * S))
        return judge(ask, self.cells, now)

    def end(self, name: str, outcome: str, now: int, probe: bool = False) -> str:
        given = Release(
            name, name, outcome, outcome == "r", breaker=("b", 2, 60 * S, 30 * S), probe=probe
        )
        return release(given, self.cells, now)


def test_a_breaker_opens_probes_and_closes() -> None:
    """While it is open tasks wait; one alone tries whether the service answers."""
    task = Broken()
    assert task.end("a", "r", 0) == ""
    assert task.end("b", "r", S) == "opened"
    assert task.judge("c", 2 * S).code == WAIT

    probe = task.judge("c", 32 * S)
    assert (probe.code, probe.probe) == (GO, True)
    assert task.judge("d", 32 * S).code == WAIT
    assert task.end("c", "s", 33 * S, probe=True) == "closed"
    assert task.judge("d", 34 * S) == Verdict(GO)


def test_a_failed_probe_opens_the_breaker_again() -> None:
    """One failure is enough then: the service has not come back."""
    task = Broken()
    task.end("a", "r", 0)
    task.end("b", "r", S)
    task.judge("c", 32 * S)

    assert task.end("c", "r", 33 * S, probe=True) == "opened"
    assert task.judge("c", 34 * S).wait_us > 28 * S


def test_a_probe_whose_worker_died_is_followed_by_another() -> None:
    """Its lease ends; a breaker must not stay half open for ever."""
    task = Broken()
    task.end("a", "r", 0)
    task.end("b", "r", S)
    task.judge("c", 32 * S)

    assert task.judge("d", 32 * S + LEASE + 1).probe


def test_failures_that_lie_far_apart_open_nothing() -> None:
    """The window slides."""
    task = Broken()
    assert task.end("a", "r", 0) == ""
    assert task.end("b", "r", 61 * S) == ""


def test_retries_beyond_the_budget_wait_and_first_attempts_do_not() -> None:
    """An outage multiplies nothing, and nothing is lost."""
    cells = Memory()

    def decide(name: str, attempt: int, now: int) -> Verdict:
        ask = Ask("t", name, attempt, False, name, LEASE, budget=("g", 0.1, 1e-6, 2))
        return judge(ask, cells, now)

    codes = [decide(f"r{n}", 1, 0).code for n in range(4)]

    assert codes == [GO, GO, WAIT, WAIT]
    assert decide("first", 0, 0).code == GO
    assert decide("later", 1, 20 * S).code == GO
