"""The command line as a user meets it: real commands, a real worker, the embedded file."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_user import TIMEOUT_S, User, until
from processes import free_port

UUID = re.compile(r"[0-9a-f-]{36}")


@pytest.fixture
def user(tmp_path: Path) -> User:
    """A user in an empty directory."""
    return User(tmp_path)


# --- tasks


def test_call_result_and_inspect_with_a_worker(user: User) -> None:
    """The first commands that anybody types."""
    with user.worker("-n", "mine"):
        waited = user.run("call", "-A", "shop:app", "shop.add", "--args", "[2, 3]", "--wait")
        assert waited.stdout == "5\n"

        task_id = user.call("shop.wait", "--args", '["go"]')
        assert UUID.fullmatch(task_id)
        active = until(
            lambda: user.run("inspect", "active", "--json").json(), "the task among the active"
        )
        assert active[0]["id"] == task_id
        assert set(active[0]) == {
            "worker",
            "id",
            "task",
            "queue",
            "attempt",
            "runtime_s",
            "pid",
            "cancelled",
        }

        workers = user.run("inspect", "workers", "--json").json()
        assert [row["worker"] for row in workers] == ["mine"]
        assert workers[0]["queues"] == ["default", "slow"]
        assert {"pool", "slots", "running", "state", "pid", "uptime_s"} <= set(workers[0])
        assert user.run("inspect", "ping", "--json").json() == [{"worker": "mine", "ok": "pong"}]
        assert "shop.nap" in user.run("inspect", "registered").stdout
        assert user.run("inspect", "unknown", "--json").json() == []
        assert user.run("inspect", "ping", "--worker", "other", "--timeout", "0.3", code=69)

        (user.directory / "go").touch()
        found = user.run("result", task_id, "--wait", "--json").json()
        assert (found["state"], found["task"]) == ("SUCCESS", "shop.wait")
        assert found["result"] == {"__type__": "base64", "__value__": "cmVzdGVk"}
        stats = user.run("inspect", "stats", "--json").json()
        assert stats[0]["endings"] == {"SUCCESS": 2}


def test_a_failure_is_told_by_call_and_by_result(user: User) -> None:
    """Scripts branch on the exit code, people read the message."""
    with user.worker():
        words = ("call", "-A", "shop:app", "shop.fail", "--args", '["no\\u001b[2J"]', "--wait")
        failed = user.run(*words, code=1)
        assert failed.stdout == ""
        assert re.search(r"^Error: task \S+ failed: ValueError: no\\x1b\[2J", failed.stderr, re.M)

        as_json = user.run(*words, "--json", code=1).json()
        assert (as_json["state"], as_json["exception"]["type"]) == ("FAILURE", "ValueError")
        shown = user.run("result", as_json["id"], code=1)
        assert "ValueError" in shown.stdout
        assert 'File "' in shown.stdout


def test_waiting_ends_in_time_and_says_where_to_look(user: User) -> None:
    """Without a worker nothing comes; the task is not lost."""
    began = time.monotonic()
    done = user.run("call", "shop.add", "--args", "[1, 2]", "--wait", "--timeout", "0.5", code=1)

    task_id = UUID.search(done.stderr)
    assert task_id is not None
    assert time.monotonic() - began < 10
    assert "is a worker running?" in done.stderr
    assert user.run("result", task_id[0], "--json").json()["state"] == "PENDING"
    assert user.run("result", task_id[0], "--wait", "--timeout", "0.2", code=1)


def test_call_takes_every_option(user: User) -> None:
    """An option that is parsed and not passed on is worse than one that is missing."""
    options = {
        "--kwargs": '{"to": "ann"}',
        "--countdown": "1h",
        "--queue": "mail",
        "--priority": "3",
        "--expires": "2h",
        "--task-id": "my-own-id",
    }
    words = [word for pair in options.items() for word in pair]

    assert user.run("call", "mail.send", *words, "--json").json() == {"id": "my-own-id"}
    rows = {row["queue"]: row for row in user.run("queues", "ls", "--json").json()}
    assert rows["mail"]["delayed"] == 1
    delayed = user.run("inspect", "delayed", "--json").json()
    assert [row["messages"] for row in delayed] == [0, 1, 1, 1]
    assert [row["within_s"] for row in delayed] == [60, 3600, 86400, 366 * 86400]


def test_call_refuses_what_the_app_does_not_have(user: User) -> None:
    """A typing error would wait ten minutes for a worker that knows it."""
    unknown = user.run("call", "-A", "shop:app", "shop.ad", code=2)
    unfit = user.run("call", "-A", "shop:app", "shop.add", "--args", "[1]", code=2)

    assert "did you mean 'shop.add'" in unknown.stderr
    assert "'y'" in unfit.stderr
    assert user.run("queues", "ls", "default", "--json").json()[0]["ready"] in (0, None)


def test_a_cancelled_delayed_task_never_starts(user: User) -> None:
    """Cancel is durable: no worker was alive when it was cancelled."""
    task_id = user.call("shop.add", "--args", "[1, 1]", "--countdown", "1")

    assert user.run("cancel", task_id).stdout == f"{task_id} cancelled\n"
    user.run("cancel", task_id)
    user.run("worker", "-A", "shop:app", "--burst", "-c", "1")
    assert user.run("result", task_id, "--json", code=1).json()["state"] == "CANCELLED"

    done = user.run("cancel", "never-sent", task_id, "--json", code=1)
    assert done.json() == [
        {"id": "never-sent", "cancelled": False, "state": "UNKNOWN"},
        {"id": task_id, "cancelled": True, "state": "CANCELLED"},
    ]


def test_what_the_app_prints_stays_out_of_json(user: User) -> None:
    """`taskq ... --json | jq` must work with an app that prints when it is imported."""
    done = user.run("queues", "ls", "-A", "shop:app", "--json")

    assert {"default", "slow", "taskq.dead"} <= {row["queue"] for row in done.json()}
    assert "imported the shop" in done.stderr


# --- queues


def test_queues_are_listed_and_purged(user: User) -> None:
    """Purging deletes: it asks, and says what it did."""
    for number in range(3):
        user.call("shop.add", "--args", f"[{number}, 1]")

    rows = {row["queue"]: row for row in user.run("queues", "ls", "--json").json()}
    assert rows["default"] == {
        "queue": "default",
        "exists": True,
        "ready": 3,
        "unsettled": 0,
        "delayed": 0,
        "consumers": 0,
        "paused": None,
    }
    assert "--yes" in user.run("queues", "purge", "default", code=2).stderr
    assert user.run("queues", "purge", "defualt", "--yes", code=1).stderr.startswith("Error: there")
    purged = user.run("queues", "purge", "default", "--yes", "--json").json()
    assert purged == [{"queue": "default", "purged": 3}]
    missing = user.run("queues", "ls", "nowhere", "--json").json()[0]
    assert (missing["exists"], missing["ready"]) == (False, None)


# --- dead letters


def test_dead_letters_from_the_listing_to_the_drop(user: User) -> None:
    """The whole life of a dead letter at the command line."""
    task_id = user.fail_for_good("first")
    other = user.call("shop.refuse")
    user.run("worker", "-A", "shop:app", "--burst", "-c", "1")

    rows = user.run("dead", "ls", "--json").json()
    assert [(row["id"], row["reason"]) for row in rows] == [
        (task_id, "failed"),
        (other, "rejected"),
    ]
    assert rows[0]["exception"]["type"] == "ValueError"
    assert (rows[0]["attempts"], rows[0]["task"], rows[0]["queue"]) == (2, "shop.fail", "default")
    assert "first" in user.run("dead", "ls").stdout
    for words in (["--reason", "rejected"], ["--task", "*.refuse"], ["--exception", "Reject"]):
        assert [row["id"] for row in user.run("dead", "ls", *words, "--json").json()] == [other]
    assert user.run("dead", "ls", "--since", "2030-01-01", "--json").json() == []

    shown = user.run("dead", "show", task_id[-8:], "--json").json()
    assert (shown["args"], shown["kwargs"]) == (["first"], {})
    assert "raise ValueError(word)" in shown["traceback"]
    assert [attempt["attempt"] for attempt in shown["history"]] == [1]
    assert "raise ValueError(word)" in user.run("dead", "show", task_id).stdout
    assert user.run("dead", "show", "nope", code=1).stderr.startswith("Error: there is no dead")

    assert "--yes" in user.run("dead", "replay", "--all", code=2).stderr
    replayed = user.run("dead", "replay", task_id, "--json").json()
    assert replayed == {"chosen": 1, "replayed": [task_id], "kept": []}
    assert user.run("result", task_id, "--json").json()["state"] == "PENDING"
    user.run("worker", "-A", "shop:app", "--burst", "-c", "1")
    again = user.run("dead", "ls", "--task", "shop.fail", "--json").json()
    assert [(row["attempts"], row["replays"]) for row in again] == [(2, 1)]

    assert user.run("dead", "drop", task_id).stdout == "dropped 1 of 1 dead letters\n"
    assert user.run("dead", "drop", task_id, code=1)
    assert user.run("dead", "drop", "--all", "--yes", "--json").json()["dropped"] == [other]
    assert user.run("dead", "ls").stdout == "no dead letters\n"


def test_a_question_is_asked_on_a_terminal(user: User) -> None:
    """`dead drop --all` is one key away from a loss."""
    task_id = user.fail_for_good()

    assert "Delete 1 dead letters for good? [y/N]" in on_terminal(
        user, "n\n", "dead", "drop", "--all"
    )
    assert [row["id"] for row in user.run("dead", "ls", "--json").json()] == [task_id]
    on_terminal(user, "y\n", "dead", "drop", "--all")
    assert user.run("dead", "ls", "--json").json() == []


def test_colours_appear_on_a_terminal_only(user: User) -> None:
    """And NO_COLOR turns them off there too."""
    user.fail_for_good()

    assert "\x1b[" in on_terminal(user, "", "doctor")
    user.variables["NO_COLOR"] = "1"
    assert "\x1b[3" not in on_terminal(user, "", "doctor")
    assert "\x1b[" not in user.run("doctor").stdout


def on_terminal(user: User, answer: str, *words: str) -> str:
    """Run a command on a terminal of its own and return what appeared there."""
    main, side = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "taskq", *words],
        cwd=user.directory,
        env={**user.environment(), "TERM": "xterm"},
        stdin=side,
        stdout=side,
        stderr=side,
    )
    os.close(side)
    os.write(main, answer.encode())
    shown = b""
    deadline = time.monotonic() + TIMEOUT_S
    try:
        while time.monotonic() < deadline:
            readable, _, _ = select.select([main], [], [], 0.1)
            if readable:
                try:
                    shown += os.read(main, 65536)
                # How Linux says that nobody holds the other end any more.
                except OSError:
                    break
    finally:
        process.wait(TIMEOUT_S)
        os.close(main)
    return shown.decode(errors="replace")


# --- errors and exit codes


def test_unknown_ids_and_disabled_results_exit_with_1(user: User) -> None:
    """An unknown id is a failure of the question, not of the configuration."""
    unknown = user.run("result", "never-sent", "--json", code=1)
    assert unknown.json()["state"] == "UNKNOWN"

    off = {"TASKQ_BROKER": "sqlite:///other.db"}
    for words in (["result", "x"], ["cancel", "x"], ["call", "a", "--wait"]):
        done = user.run(*words, code=1, env=off)
        assert "results are off" in done.stderr or "results store" in done.stderr
    assert user.run("queues", "ls", "default", "--json", env=off).json()[0]["ready"] in (0, None)


@pytest.mark.parametrize(
    ("variables", "words", "code", "hint"),
    [
        ({"TASKQ_BROKER": "amqb://x"}, ["queues", "ls"], 78, "amqp"),
        ({"TASKQ_BROKER": "amqp://127.0.0.1:{port}//"}, ["queues", "ls"], 69, "refused"),
        ({"TASKQ_BROKER": "amqp://127.0.0.1:{port}//"}, ["call", "a"], 69, "safe"),
        ({"TASKQ_BROKER": "amqp://127.0.0.1:{port}//"}, ["dead", "ls"], 69, "refused"),
        ({"TASKQ_RESULTS": "redis://127.0.0.1:{port}"}, ["result", "a"], 69, "Redis"),
        ({"TASKQ_RESULTS": "mysql://x"}, ["result", "a"], 78, "redis"),
        ({"TASKQ_BROCKER": "x"}, ["queues", "ls"], 78, "TASKQ_BROKER"),
        ({"TASKQ_BROKER": "sqlite:///shop.py"}, ["queues", "ls"], 78, "shop.py"),
        ({}, ["queues", "ls", "-A", "nothere:app"], 78, "nothere"),
        ({}, ["queues", "ls", "-A", "shop:appp"], 78, "did you mean 'app'"),
        ({}, ["worker"], 78, "-A"),
        ({}, ["worker", "-A", "nothere:app"], 78, "nothere"),
        ({}, ["worker", "-A", "shop:app", "--profile", "missing.py"], 78, "missing.py"),
        ({}, ["worker", "-A", "shop:app", "--prefetch", "lots"], 78, "prefetch"),
        ({"TASKQ_PREFIX": "a b"}, ["call", "a"], 78, "prefix 'a b'"),
        ({}, ["inspect", "ping", "--timeout", "0.2"], 69, "no worker"),
    ],
)
def test_errors_are_one_line_with_their_exit_code(
    user: User, variables: dict[str, str], words: list[str], code: int, hint: str
) -> None:
    """What happened, what to try; within seconds, and never a traceback."""
    port = free_port()
    env = {name: value.format(port=port) for name, value in variables.items()}
    began = time.monotonic()

    done = user.run(*words, code=code, env=env)

    error = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(error) == 1
    assert hint in error[0]
    assert done.stdout == ""
    assert time.monotonic() - began < 15


def test_a_worker_of_a_queue_that_cannot_be_does_not_start(user: User) -> None:
    """It would look well, and wait for ever."""
    done = user.run("worker", "-A", "shop:app", "-Q", "a b", code=78)

    assert "queue name 'a b' is not usable" in done.stderr


@pytest.mark.parametrize("command", [["worker"], ["worker", "-P", "solo"], ["queues", "ls"]])
def test_an_app_that_fails_to_import_names_file_and_line(user: User, command: list[str]) -> None:
    """The traceback of the import comes with `-l debug` only; for most it is noise."""
    (user.directory / "bad.py").write_text("import os\nos.nothing()\n")

    short = user.run(*command, "-A", "bad:app", code=78)
    long = user.run(*command, "-A", "bad:app", "-l", "debug", code=78)

    assert re.search(r"^Error: .*AttributeError.*bad\.py:2\)$", short.stderr, re.M)
    assert "os.nothing()" in long.stderr
    assert "AttributeError" in long.stderr


def test_ctrl_c_ends_a_waiting_command_quietly(user: User) -> None:
    """Who interrupts `--wait` knows that they did."""
    task_id = user.run("call", "shop.add", "--args", "[1, 2]").stdout.strip()
    process = subprocess.Popen(
        [sys.executable, "-m", "taskq", "result", task_id, "--wait"],
        cwd=user.directory,
        env=user.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what runs in the background with Ctrl-C ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    threads = Path(f"/proc/{process.pid}/task")
    until(lambda: len(list(threads.iterdir())) > 1, "the thread that watches for the result")

    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=TIMEOUT_S)

    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert out == ""


def test_json_errors_leave_stdout_parsable(user: User) -> None:
    """An empty list and a complaint are two streams."""
    done = user.run("inspect", "workers", "--timeout", "0.2", "--json", code=69)

    assert json.loads(done.stdout) == []
    assert done.stderr.startswith("Error: no worker answered")
