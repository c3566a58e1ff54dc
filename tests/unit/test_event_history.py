"""History and windows: what was recorded once is found, counted and pruned."""

import random
import sqlite3
import statistics
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from taskq import TaskQ
from taskq.errors import ConfigError
from taskq.events import Event
from taskq.events.bus import Recorder
from taskq.events.feed import EventFeed
from taskq.events.history import History, history_path
from taskq.events.windows import Histogram, TumblingWindows, lines_of

NOW_US = time.time_ns() // 1000


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    made = History(str(tmp_path / "h.db"))
    yield made
    made.close()


def event(number: int, kind: str, task_id: str, at_us: int = 0, **data: object) -> Event:
    facts = {"task_id": task_id, "task": "t", "root_id": task_id, **data}
    return Event("s", number, kind, NOW_US + at_us, facts)


def test_a_life_has_attempts_and_children_in_order(history: History) -> None:
    """The question behind `taskq history`: what happened to this order, and because of it?"""
    history.add(
        [
            event(1, "task.sent", "a", 1),
            event(2, "task.retried", "a", 2),
            event(3, "task.sent", "child", 4, root_id="a", parent_id="a"),
            event(4, "task.sent", "other", 3),
            event(5, "task.succeeded", "a", 5),
        ]
    )

    life = history.life("a")

    assert [(e.type, e.task_id) for e in life] == [
        ("task.sent", "a"),
        ("task.retried", "a"),
        ("task.sent", "child"),
        ("task.succeeded", "a"),
    ]
    assert history.life("nobody") == []


def test_what_comes_twice_is_kept_once_across_restarts(tmp_path: Path) -> None:
    """A recorder that was killed before it acknowledged gets its last batches again."""
    path = str(tmp_path / "h.db")
    first = History(path)
    batch = [event(n, "task.sent", f"i{n}") for n in range(1, 6)]
    assert first.add(batch) == 5
    first.close()

    second = History(path)

    assert second.add(batch) == 0
    assert second.add([*batch, event(6, "task.sent", "i6")]) == 1
    assert second.count() == 6
    second.close()


def test_pruning_by_age_and_number(tmp_path: Path) -> None:
    """A history grows for ever otherwise."""
    book = History(str(tmp_path / "h.db"), max_age_s=3600, max_events=10)
    book.add([event(n, "task.sent", f"old{n}", -7_200_000_000) for n in range(1, 6)])
    book.add([event(n, "task.sent", f"new{n}") for n in range(6, 30)])

    removed = book.prune()

    assert (removed, book.count()) == (19, 10)
    assert book.life("old1") == []
    assert len(book.life("new29")) == 1
    book.close()


def test_pruning_by_size_gives_the_space_back(tmp_path: Path) -> None:
    """A disk is full by bytes, not by events."""
    path = tmp_path / "h.db"
    book = History(str(path), max_bytes=2_000_000)
    note = "x" * 1000
    for start in range(1, 10_001, 1000):
        book.add([event(n, "task.sent", f"i{n}", note=note) for n in range(start, start + 1000)])
    before = book.size_bytes

    removed = book.prune()
    book.close()

    assert before > 5_000_000
    assert path.stat().st_size <= 2_000_000
    again = History(str(path), max_bytes=2_000_000)
    assert again.prune() == 0
    assert again.count() == 10_000 - removed > 500
    assert again.life("i1") == []
    assert [e.data["note"] for e in again.life("i10000")] == [note]
    again.close()


def test_the_life_of_a_task_in_the_middle_has_its_own_children_only(history: History) -> None:
    """Its root's other children are another story."""
    facts = {"root_id": "a"}
    history.add(
        [
            event(1, "task.sent", "a", 1),
            event(2, "task.sent", "b", 2, parent_id="a", **facts),
            event(3, "task.sent", "c", 3, parent_id="a", **facts),
            event(4, "task.sent", "b1", 4, parent_id="b", **facts),
            event(5, "task.sent", "b2", 5, parent_id="b1", **facts),
            event(6, "task.retried", "b", 6, parent_id="a", **facts),
        ]
    )

    assert [e.task_id for e in history.life("b")] == ["b", "b1", "b2", "b"]
    assert [e.task_id for e in history.life("a")] == ["a", "b", "c", "b1", "b2", "b"]
    assert [e.task_id for e in history.life("b2")] == ["b2"]


def test_a_history_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    """Writing into tables that it does not know would spoil them."""
    path = tmp_path / "h.db"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()

    with pytest.raises(ConfigError, match="version 99"):
        History(str(path))


class Feed(EventFeed):
    """A feed of given batches."""

    def __init__(self, rounds: list[list[bytes]]) -> None:
        self.rounds = rounds
        self.acked: list[int] = []

    def get(self, timeout_s: float) -> list[tuple[int, bytes]]:
        batches = self.rounds.pop(0) if self.rounds else []
        return [(len(self.rounds), body) for body in batches]

    def ack(self, receipt: int) -> None:
        self.acked.append(receipt)

    def close(self) -> None:
        pass


def test_catching_up_goes_on_behind_what_came_twice(history: History) -> None:
    """A recorder that was killed gets its last batches again, and others wait behind them."""
    recorder = Recorder("shop")
    bodies = []
    for name in ("a", "b"):
        recorder.tell("test.told", {"name": name})
        item = recorder.take()
        assert item is not None
        bodies.append(item.message.body)
    history.catch_up(Feed([[bodies[0]]]))
    feed = Feed([[bodies[0]], [b"garbage"], [bodies[1]]])

    assert history.catch_up(feed) == 1
    assert (history.count(), history.unreadable) == (2, 1)
    assert feed.acked == [2, 1, 0]


def test_events_are_replayed_into_a_state(tmp_path: Path) -> None:
    """What a program that starts later knows of what happened before it."""
    app = TaskQ("shop", broker=f"sqlite:///{tmp_path}/work.db")
    began = datetime.now(UTC)
    for number in range(3):
        app.events.tell("stock.moved", {"count": number})
    later = datetime.now(UTC)
    app.events.tell("stock.moved", {"count": 100})

    told = list(app.events.replay(since=began, until=later))
    everything = list(app.events.replay(since=began))

    assert sum(event.data["count"] for event in told) == 3
    assert len(everything) == 4
    with pytest.raises(ConfigError, match="aware"):
        app.events.replay(since=datetime(2026, 1, 1))
    app.close()


def test_a_file_that_is_no_history_is_named(tmp_path: Path) -> None:
    """One line that says which file, never SQLite's own error."""
    path = tmp_path / "letters.txt"
    path.write_text("dear diary, " * 200)

    with pytest.raises(ConfigError, match=r"letters\.txt"):
        History(str(path))
    with pytest.raises(ConfigError, match="missing"):
        History(str(tmp_path / "missing" / "h.db"))


def test_the_history_lies_beside_an_embedded_file() -> None:
    """One directory to back up."""
    assert history_path("sqlite:////var/lib/shop/taskq.db") == "/var/lib/shop/taskq.db-history"


def test_windows_equal_a_batch_computation() -> None:
    """In whatever order events come within the lateness: counts exact, percentiles within 2 %."""
    shuffle = random.Random(7)
    runs = [(n * 37_000, shuffle.lognormvariate(0, 1)) for n in range(5000)]
    events = [
        Event(
            "s",
            n,
            "task.succeeded" if n % 5 else "task.failed",
            at,
            {"task": f"t{n % 3}", "runtime_us": round(s * 1e6)},
        )
        for n, (at, s) in enumerate(runs)
    ]
    disordered = sorted(events, key=lambda e: e.time_us + shuffle.uniform(0, 4_000_000))
    windows = TumblingWindows(10, lateness_s=5)

    lines = [line for e in disordered for line in windows.add(e)] + windows.flush()

    assert windows.late == 0
    assert len(lines) == len({(line.start_us, line.task) for line in lines})
    for line in lines:
        exact = [
            e
            for e in events
            if e.data["task"] == line.task and e.time_us // 10_000_000 * 10_000_000 == line.start_us
        ]
        ended = [e.data["runtime_us"] / 1e6 for e in exact]
        assert line.counts["succeeded"] + line.counts["failed"] == len(exact)
        middle = line.runtimes.percentile(0.5)
        assert middle == pytest.approx(sorted(ended)[(len(ended) + 1) // 2 - 1], rel=0.02)
    assert sum(sum(line.counts.values()) for line in lines) == 5000
    assert [line.summary() for line in lines_of(events, 10)] == [line.summary() for line in lines]


def test_late_events_are_counted_and_left_out() -> None:
    """Their window was given out; changing it silently would make two truths."""
    windows = TumblingWindows(1, lateness_s=2)
    data = {"task": "t"}
    closed = windows.add(Event("s", 1, "task.sent", 500_000, data))
    closed += windows.add(Event("s", 2, "task.sent", 3_200_000, data))

    assert [line.start_us for line in closed] == [0]
    assert windows.add(Event("s", 3, "task.sent", 900_000, data)) == []
    assert windows.late == 1
    assert windows.add(Event("s", 4, "task.sent", 1_500_000, data)) == []
    assert [line.counts["sent"] for line in windows.flush()] == [1, 1]


def test_percentiles_are_within_two_percent() -> None:
    """Exact ones would keep every run time in memory."""
    draw = random.Random(3)
    values = [draw.expovariate(1) for _ in range(20_000)]
    histogram = Histogram()
    for value in values:
        histogram.add(value)

    cuts = statistics.quantiles(values, n=100, method="inclusive")

    for share in (50, 95, 99):
        assert histogram.percentile(share / 100) == pytest.approx(cuts[share - 1], rel=0.025)
    assert Histogram().percentile(0.5) is None
