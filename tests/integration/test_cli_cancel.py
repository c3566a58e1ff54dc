"""`taskq cancel` by workflow, name and header, and what it says of what it cannot cancel."""

from typing import Any

import pytest
from cli_user import User


@pytest.fixture
def user(tmp_path: Any) -> User:
    """A user in an empty directory."""
    return User(tmp_path)


def call(user: User, *words: str) -> str:
    task_id: str = user.run("call", *words, "--json").json()["id"]
    return task_id


def test_all_tasks_of_a_name_are_counted_and_cancelled(user: User) -> None:
    """The dry run tells what the command then does."""
    gone = [call(user, "shop.add", "--args", "[1, 1]") for _ in range(2)]
    late = call(user, "shop.add", "--args", "[1, 1]", "--countdown", "1d")
    kept = call(user, "shop.fail", "--args", '["kept"]')
    numbers = {"running": 0, "held": 0, "waiting": 3, "workers": 0}

    dry = user.run("cancel", "--task", "shop.add", "--dry-run", "--json").json()
    assert dry == {"dry_run": True, **numbers}
    assert user.run("result", gone[0], "--json").json()["state"] == "PENDING"
    said = user.run("cancel", "--task", "shop.add").stdout
    assert said == "cancelled 3 waiting tasks, 0 running (0 workers answered)\n"

    after = call(user, "shop.add", "--args", "[2, 3]")
    user.run("worker", "-A", "shop:app", "--burst", "-c", "1")
    for task_id in gone:
        assert user.run("result", task_id, "--json", code=1).json()["state"] == "CANCELLED"
    assert user.run("result", after, "--json").json()["result"] == 5
    assert user.run("result", kept, "--json", code=1).json()["state"] == "FAILURE"
    again = user.run("cancel", "--task", "shop.add", "--dry-run", "--json").json()
    assert again["waiting"] == 1, late


def test_a_workflow_and_its_first_task_are_one(user: User) -> None:
    """A task that nobody else sent is its own workflow."""
    first = call(user, "shop.add", "--args", "[1, 1]")
    other = call(user, "shop.add", "--args", "[1, 2]")

    user.run("cancel", "--root", first)

    user.run("worker", "-A", "shop:app", "--burst", "-c", "1")
    assert user.run("result", first, "--json", code=1).json()["state"] == "CANCELLED"
    assert user.run("result", other, "--json").json()["result"] == 3


def test_a_dry_run_by_id_changes_nothing(user: User) -> None:
    """It tells which of them could still be cancelled."""
    task_id = call(user, "shop.add", "--args", "[1, 1]")

    done = user.run("cancel", "--dry-run", "--json", task_id, "never-sent", code=1)

    assert done.json() == [
        {"id": task_id, "cancelled": True, "state": "PENDING", "dry_run": True},
        {"id": "never-sent", "cancelled": False, "state": "UNKNOWN", "dry_run": True},
    ]
    assert "never-sent is UNKNOWN" in done.stderr
    assert user.run("result", task_id, "--json").json()["state"] == "PENDING"


@pytest.mark.parametrize(
    ("words", "code", "hint"),
    [
        ([], 2, "name tasks by ID"),
        (["some-id", "--task", "shop.add"], 2, "name tasks by ID"),
        (["--header", "tenant"], 2, "NAME=VALUE"),
        (["--task", "x" * 300], 78, "1 to 255 bytes"),
        (["--task", "x", "--ttl", "0"], 78, "ttl_s"),
        (["--dry-run"], 2, "name tasks by ID"),
    ],
)
def test_bad_input_is_named(user: User, words: list[str], code: int, hint: str) -> None:
    """And nothing is changed."""
    assert hint in user.run("cancel", *words, code=code).stderr


def test_without_results_nothing_can_remember_a_cancel(user: User) -> None:
    """Said also by a dry run."""
    off = {"TASKQ_BROKER": "sqlite:///other.db"}
    for words in (["x"], ["x", "--dry-run"], ["--task", "x"], ["--root", "x", "--dry-run"]):
        done = user.run("cancel", *words, code=1, env=off)
        assert "results store" in done.stderr


def test_rabbitmq_says_what_it_cannot_count(user: User, rabbitmq_url: str, redis_url: str) -> None:
    """A number that is only part of the truth must not look like the whole."""
    servers = {"TASKQ_BROKER": rabbitmq_url, "TASKQ_RESULTS": redis_url}
    task_id = user.run("call", "shop.add", "--json", env=servers).json()["id"]

    done = user.run("cancel", "--task", "shop.add", env=servers)
    counted = user.run("cancel", "--task", "shop.add", "--dry-run", "--json", env=servers).json()

    assert "cannot look into" in done.stdout
    assert counted["waiting"] is None
    user.run("worker", "-A", "shop:app", "--burst", "-c", "1", env=servers)
    shown = user.run("result", task_id, "--json", code=1, env=servers).json()
    assert shown["state"] == "CANCELLED"
