"""`taskq events` and `taskq history` as a user meets them."""

import contextlib
import json
import math
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_user import TIMEOUT_S, User, until

from taskq.brokers import open_broker
from taskq.brokers.base import BrokerOptions
from taskq.events.bus import Recorder


@pytest.fixture
def user(tmp_path: Path) -> User:
    """A user in an empty directory."""
    return User(tmp_path)


def test_the_history_of_a_failed_task(user: User) -> None:
    """Attempts and dead letter, with nothing set up, after everything has ended."""
    task_id = user.fail_for_good()

    shown = user.run("history", task_id, "-A", "shop:app")
    rows = user.run("history", task_id, "-A", "shop:app", "--json").json()

    assert [row["type"].removeprefix("io.taskq.task.") for row in rows] == [
        "sent",
        "received",
        "started",
        "retried",
        "received",
        "started",
        "failed",
        "dead_lettered",
    ]
    assert {row["data"]["attempt"] for row in rows} == {1, 2}
    assert "error=ValueError: broken" in shown.stdout
    assert "no event of task" in user.run("history", "nobody", code=1).stderr


def test_stats_and_replay(user: User) -> None:
    """Counts per task and window, without Kafka."""
    user.fail_for_good()

    (row,) = user.run("events", "stats", "--window", "1d", "--json").json()
    lines = user.run("events", "replay", "--json").stdout.splitlines()

    assert (row["task"], row["sent"], row["retried"], row["failed"]) == ("shop.fail", 1, 1, 1)
    assert row["failure_rate"] == 1.0
    assert row["p50_s"] > 0
    kinds = [json.loads(line)["type"] for line in lines]
    assert kinds.count("io.taskq.task.started") == 2
    assert "SHOP.FAIL" in user.run("events", "stats").stdout.upper()
    assert user.run("events", "stats", "--window", "0", code=2)


def tell(user: User, *runs: tuple[int, int]) -> None:
    """Report runs that ended: (when, how long), in microseconds."""
    recorder = Recorder("shop")
    recorder.add(
        ("task.succeeded", at_us, 0, f"id-{n}", "shop.add", "q", 0, "", "", us, None)
        for n, (at_us, us) in enumerate(runs)
    )
    item = recorder.take()
    assert item is not None
    options = BrokerOptions()
    with contextlib.closing(open_broker(f"sqlite:///{user.directory}/taskq.db", options)) as broker:
        assert broker.publish([item], 60) == [None]


def test_stats_equal_an_exact_computation(user: User) -> None:
    """Over what was recorded, nothing is late: shuffled and an hour apart, all of it counts."""
    shuffle = random.Random(11)
    hour_us = 3_600_000_000
    base_us = time.time_ns() // 1000 // hour_us * hour_us - 5 * hour_us
    runs = [
        (base_us + shuffle.randrange(3 * hour_us), round(shuffle.lognormvariate(0, 1.2) * 1e5))
        for _ in range(900)
    ]
    tell(user, *runs)

    rows = user.run("events", "stats", "--window", "1h", "--since", "1d", "--json").json()

    assert [row["start_ms"] * 1000 for row in rows] == [base_us + n * hour_us for n in range(3)]
    for row in rows:
        start_us = row["start_ms"] * 1000
        inside = sorted(us for at_us, us in runs if at_us // hour_us * hour_us == start_us)
        assert row["succeeded"] == len(inside)
        for share in (50, 95, 99):
            exact_us = inside[math.ceil(len(inside) * share / 100) - 1]
            assert row[f"p{share}_s"] * 1e6 == pytest.approx(exact_us, rel=0.02)


def test_followed_stats_tell_of_late_events(user: User) -> None:
    """A window that was printed is not printed again; what it lacks is told."""
    out, err = user.directory / "stats.out", user.directory / "stats.err"
    words = ["events", "stats", "--follow", "--window", "1s", "--lateness", "0", "--json"]
    with out.open("w") as stdout, err.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "taskq", *words],
            cwd=user.directory,
            env=user.environment(),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
        )

    def printed() -> list[str]:
        # The first may come before the reader is there.
        tell(user, (time.time_ns() // 1000, 5))
        return [line for line in out.read_text().splitlines() if line.endswith("}")]

    def told() -> bool:
        tell(user, (first["start_ms"] * 1000, 5))
        return "after their window was over" in err.read_text()

    try:
        first = json.loads(until(printed, "a line", TIMEOUT_S)[0])
        until(told, "a word of late events", TIMEOUT_S)
    finally:
        # SIGINT may be ignored by inheritance, where the tests run in the background.
        process.terminate()
        process.wait(TIMEOUT_S)

    starts = [json.loads(line)["start_ms"] for line in out.read_text().splitlines()]
    assert len(starts) == len(set(starts))
    assert "Traceback" not in err.read_text()


def test_tail_shows_what_is_asked_for(user: User) -> None:
    """Live, filtered, one CloudEvent in each line, and an end by Ctrl-C without a traceback."""
    out = user.directory / "tail.out"
    with out.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "taskq", "events", "tail", "--state", "pending", "--json"],
            cwd=user.directory,
            env=user.environment(),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.PIPE,
            text=True,
        )
    seen: list[str] = []

    def lines() -> list[str]:
        # The first sends may come before the reader is there.
        seen.append(user.call("shop.add", "--args", "[1, 2]"))
        return [line for line in out.read_text().splitlines() if line.endswith("}")]

    try:
        first = json.loads(until(lines, "an event of the tail", TIMEOUT_S)[0])
    finally:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=TIMEOUT_S)

    assert first["type"] == "io.taskq.task.sent"
    assert first["data"]["task_id"] in seen
    assert "Traceback" not in errors
    assert user.run("events", "tail", "--state", "broken", code=78)


def test_a_recorder_feeds_the_history_from_rabbitmq(user: User, rabbitmq_url: str) -> None:
    """What happens while no recorder runs waits in its queue."""
    user.variables["TASKQ_BROKER"] = rabbitmq_url
    missing = user.run("history", "x", code=1).stderr
    assert "taskq events record" in missing
    user.run("events", "record", "--once")
    task_id = user.call("shop.add", "--args", "[1, 2]")

    user.run("events", "record", "--once")

    (row,) = user.run("history", task_id, "--json").json()
    assert row["subject"] == task_id
