"""`taskq dead` beyond the listing: pages, edits, replays, files, and what is refused."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_user import User, until

from taskq import resend
from taskq.body import encode_call
from taskq.brokers import open_broker
from taskq.brokers.base import Broker, BrokerOptions, Outgoing
from taskq.errors import RemoteError

EMBEDDED = pytest.mark.parametrize("user", ["sqlite"], indirect=True)
"""For what is the same on every broker, and costs a process for each command."""


@pytest.fixture(params=["sqlite", "amqp"])
def user(request: pytest.FixtureRequest, tmp_path: Path) -> User:
    """Somebody at a shell, with a broker of their own and no results."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/broker.db"
    else:
        url = str(request.getfixturevalue("rabbitmq_url"))
    state = str(tmp_path / "state")
    return User(tmp_path, TASKQ_BROKER=url, TASKQ_RESULTS="off", TASKQ_STATE_DIR=state)


@pytest.fixture
def broker(user: User) -> Iterator[Broker]:
    """The user's broker, with the queue `default`."""
    opened = open_broker(user.variables["TASKQ_BROKER"], BrokerOptions())
    opened.declare(["default"])
    yield opened
    opened.close()


def bury(broker: Broker, *ids: str, queue: str = "default", **kwargs: Any) -> None:
    error = RemoteError("builtins", "ValueError", "no")
    batch = []
    for task_id in ids:
        call = encode_call("shop.add", task_id, [1], kwargs or {"y": 2})
        letter = resend.dead(call, "failed", queue, error=error, attempts=2, worker="w")
        batch.append(Outgoing(queue, letter, dead=True))
    assert broker.publish(batch, 30) == [None] * len(batch)
    until(lambda: listed(broker) >= set(ids), "the letters")


def listed(broker: Broker) -> set[str]:
    found: set[str] = set()

    def look(letter: Any) -> Any:
        found.add(letter.message.id)
        return "keep"

    broker.sweep_dead(look)
    return found


def depth(broker: Broker, queue: str = "default") -> int:
    found = broker.depths([queue])[queue]
    return found.ready if found else -1


def test_pages_come_from_one_index(user: User, broker: Broker) -> None:
    """The second page is not shifted by letters that arrived after the first."""
    bury(broker, *(f"letter-{n:02}" for n in range(10)))

    first = user.run("dead", "ls", "--limit", "4")
    assert "page 1 of 3, 10 letters as of" in first.stderr
    assert "--page 2" in first.stderr
    bury(broker, "letter-99")

    def page(number: int, *words: str) -> list[str]:
        done = user.run("dead", "ls", "--limit", "4", "--page", str(number), *words, "--json")
        return [row["id"] for row in done.json()]

    assert page(2) == [f"letter-{n:02}" for n in (2, 3, 4, 5)]
    assert page(3) == ["letter-00", "letter-01"]
    assert page(2, "--task", "shop.*", "--attempts", "2")[0] == "letter-02"
    assert page(1) == ["letter-07", "letter-08", "letter-09", "letter-99"]


@EMBEDDED
def test_letters_are_chosen_by_age_and_attempts(user: User, broker: Broker) -> None:
    """What failed in the outage this morning, and nothing of what fails now."""
    bury(broker, "letter-1")

    def count(*words: str) -> int:
        return len(user.run("dead", "ls", *words, "--json").json())

    assert count("--before", "1h") == 0
    assert count("--since", "1h") == 1
    assert count("--since", "1h", "--before", "2100-01-01") == 1
    assert count("--attempts", "2") == 1
    assert count("--attempts", "3") == 0


@EMBEDDED
def test_secrets_are_hidden_in_what_is_shown(user: User, broker: Broker) -> None:
    """Whoever looks after failures need not see the customers' passwords."""
    bury(broker, "letter-1", user="ann", db_password="hunter2", deep={"API-Key": "k3y"})

    shown = user.run("dead", "show", "letter-1")
    assert "hunter2" not in shown.stdout
    assert "k3y" not in shown.stdout
    data = user.run("dead", "show", "letter-1", "--json").json()
    assert data["kwargs"] == {"user": "ann", "db_password": "***", "deep": {"API-Key": "***"}}
    open_ = user.run("dead", "show", "letter-1", "--reveal", "--json").json()
    assert open_["kwargs"]["db_password"] == "hunter2"
    more = user.run("dead", "show", "letter-1", "--json", env={"TASKQ_REDACT": "user"}).json()
    assert more["kwargs"]["user"] == "***"


def test_a_replay_is_tried_first(user: User, broker: Broker) -> None:
    """What a filter means is seen before anything is sent."""
    bury(broker, "letter-1", "letter-2")

    dry = user.run("dead", "replay", "--task", "shop.*", "--dry-run", "--json").json()

    assert dry == {
        "chosen": 2,
        "would_replay": ["letter-1", "letter-2"],
        "queues": {"default": 2},
    }
    assert "2 dead letters to default" in user.run("dead", "replay", "--all", "--dry-run").stdout
    assert listed(broker) == {"letter-1", "letter-2"}
    assert depth(broker) == 0


@EMBEDDED
@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["replay", "--reason", "rejected", "--yes"], 1, "no dead letter matches"),
        (["drop", "--task", "nope", "--yes"], 1, "no dead letter matches"),
        (["export", "--task", "nope"], 1, "no dead letter matches"),
        (["replay", "letter-1", "--to", "nowhere"], 1, "there is no queue nowhere (1 letters)"),
        (["replay", "letter-1", "--to", "no where"], 78, "queue name 'no where' is not usable"),
        (["replay", "letter-1", "--rate", "0"], 2, "--rate"),
        (["replay", "--resume", "20260101-000000-abcdef"], 78, "there is no journal of a job"),
        (["replay", "--resume", "../../etc/passwd"], 78, "there is no journal of a job"),
        (["replay", "letter-1", "--resume"], 2, "leave filters out"),
        (["edit", "letter-1"], 2, "what is to be changed?"),
        (["edit", "letter-1", "--args", "{"], 2, "as JSON"),
        (["edit", "letter-1", "--args", "[1, 2, 3]"], 2, "do not fit shop.add"),
        (["edit", "letter-1", "--kwargs", '{"z": 1}', "--replay"], 2, "do not fit shop.add"),
        (["edit", "letter-1", "--queue", "a b"], 78, "queue name 'a b' is not usable"),
        (["edit", "letter-1", "--queue", "nowhere", "--replay"], 78, "no queue nowhere"),
        (["edit", "letter-9", "--args", "[1]"], 1, "there is no dead letter"),
        (["import", "nothing.jsonl"], 1, "cannot read nothing.jsonl"),
        (["import", "shop.py"], 1, "no dead letter that taskq exported"),
    ],
)
def test_what_makes_no_sense_changes_nothing(
    user: User, broker: Broker, words: list[str], code: int, says: str
) -> None:
    """A slip of the operator's finger costs a message, not a letter."""
    bury(broker, "letter-1")

    done = user.run("dead", words[0], "-A", "shop:app", *words[1:], code=None)

    assert says in done.stderr
    assert done.returncode in (code, 78 if words[0] == "import" else code)
    assert listed(broker) == {"letter-1"}
    assert depth(broker) == 0


def test_a_replay_to_a_queue_that_is_gone_is_refused(user: User, broker: Broker) -> None:
    """RabbitMQ drops what has no queue, unless somebody asks before."""
    bury(broker, "letter-1", queue="gone")

    refused = user.run("dead", "replay", "--all", "--yes", code=1).stderr
    assert "there is no queue gone (1 letters)" in refused
    assert listed(broker) == {"letter-1"}
    assert user.run("dead", "replay", "--all", "--yes", "--to", "default")
    until(lambda: depth(broker) == 1, "the task in the other queue")


@EMBEDDED
def test_a_cut_id_that_means_several_letters_drops_none(user: User, broker: Broker) -> None:
    """Whoever types the end of an id means one letter."""
    bury(broker, "first-0192f0c8", "second-0192f0c8", "third-77777777")

    refused = user.run("dead", "drop", "0192f0c8", code=1)
    user.run("dead", "drop", "77777777")
    user.run("dead", "drop", "first-0192f0c8")

    assert "end of 2 ids" in refused.stderr
    assert listed(broker) == {"second-0192f0c8"}


def test_an_edited_letter_stays_dead_until_it_is_replayed(user: User, broker: Broker) -> None:
    """The argument was wrong: put it right, look at it again, then send it."""
    bury(broker, "letter-1", "letter-2")

    edited = user.run("dead", "edit", "-A", "shop:app", "letter-1", "--args", "[40]", "--json")
    assert edited.json() == {"id": "letter-1", "edited": True, "replayed": False}
    shown = user.run("dead", "show", "letter-1", "--json").json()
    assert (shown["args"], shown["kwargs"]) == ([40], {"y": 2})
    assert (shown["reason"], shown["attempts"]) == ("failed", 2)
    user.run("dead", "edit", "letter-1", "--queue", "other")
    assert user.run("dead", "show", "letter-1", "--json").json()["queue"] == "other"

    user.run("dead", "edit", "letter-1", "--queue", "default", "--kwargs", '{"y": 9}', "--replay")

    until(lambda: depth(broker) == 1, "the edited task in its queue")
    assert listed(broker) == {"letter-2"}
    rows = user.run("dead", "audit", "--json").json()
    assert [(row["action"], row["state"], row["done"]) for row in rows] == [
        ("edit", "ended", 1),
        ("edit", "ended", 1),
        ("replay", "ended", 1),
    ]
    assert rows[0]["ids"] == ["letter-1"]
    assert "replay" in user.run("dead", "audit").stdout


def test_letters_are_exported_dropped_and_imported(user: User, broker: Broker) -> None:
    """A dead letter can be kept, or mended elsewhere, without losing a byte of it."""
    bury(broker, "letter-1", "letter-2", blob="x" * 1000)
    before = {one: user.run("dead", "show", one, "--json").json() for one in listed(broker)}

    user.run("dead", "export", "--all", "-o", "kept.jsonl")
    assert (user.directory / "kept.jsonl").stat().st_mode & 0o777 == 0o600
    lines = (user.directory / "kept.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["letter-1", "letter-2"]
    assert user.run("dead", "export", "letter-2").stdout.splitlines() == lines[1:]
    user.run("dead", "drop", "letter-1", "--yes")

    done = user.run("dead", "import", "kept.jsonl", "--json").json()
    assert done == {"read": 2, "imported": ["letter-1"]}
    until(lambda: listed(broker) == {"letter-1", "letter-2"}, "the letters")
    assert user.run("dead", "import", "kept.jsonl", "--json").json()["imported"] == []
    after = {one: user.run("dead", "show", one, "--json").json() for one in listed(broker)}
    assert after == before

    damaged = user.directory / "damaged.jsonl"
    damaged.write_text(f"{lines[0]}\n{{broken\n")
    user.run("dead", "drop", "--all", "--yes")
    refused = user.run("dead", "import", "damaged.jsonl", code=78)
    assert "line 2 of damaged.jsonl" in refused.stderr
    assert listed(broker) == set()


def test_an_interrupted_replay_is_gone_on_with(user: User, broker: Broker) -> None:
    """Ctrl-C, a lost shell, a machine that goes down: the letters left are sent later, once."""
    ids = [f"letter-{n:03}" for n in range(60)]
    bury(broker, *ids)
    command = ["dead", "replay", "--all", "--yes", "--rate", "20"]
    process = subprocess.Popen(
        [sys.executable, "-m", "taskq", *command],
        cwd=user.directory,
        env=user.environment(),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    until(lambda: depth(broker) > 3, "the first letters in their queue")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "taskq dead replay --resume" in said

    hint = user.run("dead", "ls").stderr
    assert "a replay was cut off" in hint
    resumed = user.run("dead", "replay", "--resume", "--json").json()
    assert resumed["chosen"] == 60
    assert resumed["job"] in hint
    until(lambda: depth(broker) == 60, "all letters in their queue")
    assert listed(broker) == set()
    assert "a replay was cut off" not in user.run("dead", "ls").stderr
    again = user.run("dead", "replay", "--resume", "--json").json()
    assert again["replayed"] == []


@EMBEDDED
def test_a_state_directory_that_cannot_be_written_stops_a_replay_before_it_begins(
    user: User, broker: Broker
) -> None:
    """Without a journal a replay that is killed could not be gone on with."""
    bury(broker, "letter-1")
    (user.directory / "file").write_text("")
    env = {"TASKQ_STATE_DIR": os.fspath(user.directory / "file")}

    for words in (["replay", "letter-1"], ["drop", "letter-1"], ["ls", "--limit", "1"]):
        assert "TASKQ_STATE_DIR" in user.run("dead", *words, code=78, env=env).stderr

    assert user.run("dead", "ls", env=env)
    assert listed(broker) == {"letter-1"}
