"""`taskq queues pause|resume|drain` and `taskq tasks`, as a user types them."""

import threading
from pathlib import Path

import pytest
from cli_user import User, until


@pytest.fixture
def user(tmp_path: Path) -> User:
    """A user in an empty directory."""
    return User(tmp_path)


def test_a_pause_is_seen_everywhere_and_ends(user: User) -> None:
    """By who lists queues, tasks and workers, in the table and as JSON."""
    with user.worker("-Q", "default,slow"):
        words = ("slow", "--for", "10m", "--why", "new disk", "--by", "ann")
        user.run("queues", "pause", "-A", "shop:app", *words)
        user.run("tasks", "pause", "-A", "shop:app", "shop.add")

        (row,) = user.run("queues", "ls", "-A", "shop:app", "slow", "--json").json()
        assert (row["paused"]["by"], row["paused"]["why"]) == ("ann", "new disk")
        assert row["paused"]["since"] < row["paused"]["until"]
        table = user.run("queues", "ls", "-A", "shop:app").stdout
        assert "paused for 10m more by ann: new disk" in table
        rows = {row["task"]: row for row in user.run("tasks", "ls", "--json").json()}
        assert rows["shop.add"]["paused"]["until"] is None
        assert rows["shop.fail"]["paused"] is None
        assert rows["shop.nap"] == {
            "task": "shop.nap",
            "queue": "slow",
            "workers": 1,
            "paused": None,
        }
        paused = ["queue:slow", "task:shop.add"]
        until(
            lambda: user.run("inspect", "workers", "--json").json()[0]["paused"] == paused,
            "the worker's own view",
        )
        assert "paused by" in user.run("tasks", "ls").stdout

        user.run("queues", "resume", "slow")
        user.run("tasks", "resume", "shop.add")
        assert "was not paused" in user.run("queues", "resume", "slow", code=1).stdout
        assert user.run("call", "-A", "shop:app", "shop.nap", "--args", "[0]", "--wait").stdout


def touch_later(path: Path) -> None:
    """End the task that waits for this file while the next command runs."""
    threading.Timer(1.5, path.touch).start()


def test_a_drained_queue_has_nothing_running(user: User) -> None:
    """Drain, migrate, resume: in between nothing of the queue may run."""
    with user.worker("-Q", "default,slow"):
        running = user.call("shop.wait", "--args", '["go"]')
        until(lambda: user.run("inspect", "active", "--json").json(), "a running task")

        late = user.run("queues", "drain", "slow", "--timeout", "0", code=1)
        assert "holds 1 tasks" in late.stderr or "not seen the pause" in late.stderr
        waiting = user.call("shop.nap", "--args", "[0]")
        touch_later(user.directory / "go")
        user.run("queues", "drain", "slow", "--why", "schema change", "--timeout", "60")

        assert user.run("result", running, "--json").json()["state"] == "SUCCESS"
        assert user.run("result", waiting, "--json", code=None).json()["state"] == "PENDING"
        (row,) = user.run("queues", "ls", "slow", "--json").json()
        assert (row["ready"], row["unsettled"]) == (1, 0)
        user.run("queues", "resume", "slow")
        assert user.run("result", waiting, "--wait", "--timeout", "30").returncode == 0


def test_drain_knows_when_rabbitmq_is_done(
    tmp_path: Path, rabbitmq_url: str, redis_url: str
) -> None:
    """There the broker tells no numbers of what workers hold; the workers do."""
    user = User(tmp_path, TASKQ_BROKER=rabbitmq_url, TASKQ_RESULTS=redis_url)
    with user.worker("-Q", "default,slow"):
        running = user.call("shop.wait", "--args", '["go"]')
        until(lambda: user.run("inspect", "active", "--json").json(), "a running task")

        touch_later(user.directory / "go")
        row = user.run("queues", "drain", "slow", "--timeout", "60", "--json").json()

        assert row["drained"]
        assert user.run("result", running, "--json").json()["state"] == "SUCCESS"


def test_a_misspelt_name_is_not_paused(user: User) -> None:
    """A pause of `mial` stops nothing, and the window would pass unnoticed."""
    queue = user.run("queues", "pause", "-A", "shop:app", "slwo", code=1)
    task = user.run("tasks", "pause", "-A", "shop:app", "shop.ad", code=1)

    assert "did you mean 'slow'?" in queue.stderr
    assert "did you mean 'shop.add'?" in task.stderr
    assert user.run("queues", "pause", "-A", "shop:app", "slwo", "--force").returncode == 0
    both = ("slow", "--for", "1m", "--until", "2100-01-01")
    assert (
        "exclude each other" in user.run("queues", "pause", "-A", "shop:app", *both, code=78).stderr
    )


def test_without_a_store_nothing_is_paused(user: User) -> None:
    """Named at once, with what to set."""
    done = user.run(
        "queues", "pause", "slow", "--force", code=1, env={"TASKQ_BROKER": "amqp://127.0.0.1:1//"}
    )

    assert "TASKQ_RESULTS" in done.stderr
