"""`taskq events` and `taskq history` as a user meets them."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cli_user import TIMEOUT_S, User, until


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
