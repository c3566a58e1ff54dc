"""`taskq doctor` and `taskq dead` on RabbitMQ."""

import json
import re
from typing import Any

import pytest
from cli_user import User, examine, until
from servers import RabbitServer

from taskq import TaskQ
from taskq.body import encode_call
from taskq.brokers.base import Outgoing
from taskq.errors import RemoteError
from taskq.resend import dead


@pytest.fixture
def user(tmp_path: Any) -> User:
    """A user in an empty directory."""
    return User(tmp_path)


def test_rabbitmq_is_well(user: User, rabbitmq_url: str) -> None:
    """On an empty virtual host everything is made by the first look."""
    found = examine(user, "-A", "shop:app", TASKQ_BROKER=rabbitmq_url)

    broker = {n: r["status"] for n, r in found.items() if n.startswith(("broker.", "dead-"))}
    assert set(broker.values()) == {"ok"}, broker
    assert {"broker.reachable", "broker.alarms", "dead-letters.waiting"} <= set(broker)


def test_a_wrong_password_is_seen(user: User, rabbitmq_url: str) -> None:
    """Told apart from a broker that is away: another cure."""
    wrong = re.sub(r"//[^@]*@", "//nobody:wrong@", rabbitmq_url)

    found = examine(user, code=1, TASKQ_BROKER=wrong)

    assert found["broker.access"]["status"] == "failed"
    assert "wrong" not in json.dumps(found), "a password is printed nowhere"


@pytest.mark.parametrize("words", [["call", "a"], ["queues", "ls"], ["dead", "ls"]])
@pytest.mark.parametrize("mistake", [r"//[^@]*@ //nobody:wrong@", r"/[^/]*$ /nosuch"])
def test_wrong_credentials_are_a_mistake_of_configuration(
    user: User, rabbitmq_url: str, words: list[str], mistake: str
) -> None:
    """No waiting cures them, whichever command meets them: exit code 78, and no password."""
    pattern, _, instead = mistake.partition(" ")
    wrong = re.sub(pattern, instead, rabbitmq_url)

    done = user.run(*words, code=78, env={"TASKQ_BROKER": wrong})

    assert done.stderr.count("Error: ") == 1
    assert "nobody:wrong" not in done.stderr


def test_a_queue_of_dead_letters_with_other_arguments_is_seen(
    user: User, rabbitmq_url: str, channel: Any
) -> None:
    """Letters would be lost where somebody gave it a length limit."""
    channel.queue_declare("taskq.dead", durable=True, arguments={"x-max-length": 5})

    found = examine(user, code=1, TASKQ_BROKER=rabbitmq_url)

    assert found["broker.dead-letters"]["status"] == "failed"


def test_an_adopted_queue_is_seen(user: User, rabbitmq_url: str, channel: Any) -> None:
    """Celery's queue is used as it is; the operator should know."""
    channel.queue_declare("default", durable=True)

    found = examine(user, TASKQ_BROKER=rabbitmq_url)

    assert found["broker.queue-arguments"]["status"] == "warning"


def test_an_alarm_is_seen(user: User, private_rabbitmq: RabbitServer) -> None:
    """Consumers go on, senders wait: without a hint it looks like a bug of taskq."""
    private_rabbitmq.eval("vm_memory_monitor:set_vm_memory_high_watermark(0.0)")

    found = examine(user, code=1, TASKQ_BROKER=private_rabbitmq.url)

    assert found["broker.alarms"]["status"] == "failed"


def test_missing_permissions_are_seen(
    user: User, rabbitmq_url: str, shared_rabbitmq: RabbitServer
) -> None:
    """A user that may only read and write needs somebody else to make the queues."""
    vhost = rabbitmq_url.rpartition("/")[2]
    shared_rabbitmq.eval(
        f'rabbit_auth_backend_internal:add_user(<<"{vhost}">>, <<"pw">>, <<"tests">>),'
        f'rabbit_auth_backend_internal:set_permissions(<<"{vhost}">>, <<"{vhost}">>,'
        '<<"">>, <<".*">>, <<".*">>, <<"tests">>)'
    )
    url = re.sub(r"//[^@]*@", f"//{vhost}:pw@", rabbitmq_url)

    found = examine(user, code=1, TASKQ_BROKER=url)

    shared_rabbitmq.eval(f'rabbit_auth_backend_internal:delete_user(<<"{vhost}">>, <<"tests">>)')
    failed = {name for name, row in found.items() if row["status"] == "failed"}
    assert failed == {"broker.permissions"}


def test_an_old_rabbitmq_is_seen() -> None:
    """Before 3.10, quorum queues lose dead letters on the way."""
    from taskq.brokers.rabbitmq_admin import check_version

    assert check_version("3.9.13").status == "failed"
    assert check_version("").status == "failed"
    assert check_version("4.1.0").status == "ok"


# --- dead letters


def bury(app: TaskQ, task_id: str, reason: str = "failed", queue: str = "bills") -> None:
    message = encode_call("shop.pay", task_id, [1], {"to": "ann"})
    error = RemoteError("builtins", "ValueError", "no money")
    letter = dead(message, reason, queue, error=error, attempts=4, worker="w1")
    (refused,) = app.broker.publish([Outgoing(queue, letter, dead=True)], 10)
    assert refused is None


def test_letters_are_listed_shown_replayed_and_dropped(user: User, rabbitmq_url: str) -> None:
    """The same commands as on the embedded broker, over the wire."""
    user.variables["TASKQ_BROKER"] = rabbitmq_url
    with TaskQ("x", broker=rabbitmq_url) as app:
        for number in range(3):
            bury(app, f"letter-number-{number}")
    assert examine(user)["dead-letters.waiting"]["detail"] == "3 dead letters"

    for _ in range(3):
        rows = user.run("dead", "ls", "--json").json()
        assert [row["id"] for row in rows] == [f"letter-number-{n}" for n in range(3)]
    shown = user.run("dead", "show", "letter-number-1", "--json").json()
    assert (shown["args"], shown["attempts"]) == ([1], 4)
    replayed = user.run("dead", "replay", "letter-number-1", "--create", "--json").json()
    assert replayed["replayed"] == ["letter-number-1"]
    until(lambda: ready(user, "bills") == 1, "the replayed message in its queue")
    dropped = user.run("dead", "drop", "--queue", "bills", "--yes", "--json").json()
    assert dropped["dropped"] == ["letter-number-0", "letter-number-2"]
    until(lambda: ready(user, "taskq.dead") == 0, "an empty queue of dead letters")


def ready(user: User, queue: str) -> int | None:
    found: int | None = user.run("queues", "ls", queue, "--json").json()[0]["ready"]
    return found


def test_a_letter_whose_queue_was_deleted_during_its_delay_is_unroutable(
    user: User, rabbitmq_url: str, channel: Any
) -> None:
    """RabbitMQ itself moved it: it must be found, and be replayable, all the same."""
    user.variables["TASKQ_BROKER"] = rabbitmq_url
    task_id = user.run("call", "a.task", "--queue", "gone", "--countdown", "3").stdout.strip()
    channel.queue_delete("gone")

    rows = until(lambda: user.run("dead", "ls", "--json").json(), "the dead letter")

    assert [(row["id"], row["reason"], row["queue"]) for row in rows] == [
        (task_id, "unroutable", "gone")
    ]
    assert rows[0]["exception"]["message"]
    assert rows[0]["failed_at"]
    assert "there is no queue gone" in user.run("dead", "replay", task_id, code=1).stderr
    replayed = user.run("dead", "replay", task_id, "--create").stdout
    assert replayed == "replayed 1 of 1 dead letters\n"
    until(lambda: ready(user, "gone") == 1, "the replayed message in its queue")


def test_a_letter_that_somebody_rejected_is_rejected(
    user: User, rabbitmq_url: str, channel: Any
) -> None:
    """Another consumer of the queue refused it: RabbitMQ dead-letters it by itself."""
    user.variables["TASKQ_BROKER"] = rabbitmq_url
    task_id = user.run("call", "a.task", "--queue", "mixed").stdout.strip()

    def refuse() -> bool:
        frame, _, _ = channel.basic_get("mixed")
        if frame is not None:
            channel.basic_reject(frame.delivery_tag, requeue=False)
        return frame is not None

    until(refuse, "the message")
    rows = until(lambda: user.run("dead", "ls", "--json").json(), "the dead letter")

    assert [(row["id"], row["reason"], row["queue"]) for row in rows] == [
        (task_id, "rejected", "mixed")
    ]


def test_a_replay_of_a_failed_task_runs_it_again(
    user: User, rabbitmq_url: str, redis_url: str
) -> None:
    """With results, a worker would take the replay for a redelivery and acknowledge it unrun."""
    user.variables.update(TASKQ_BROKER=rabbitmq_url, TASKQ_RESULTS=redis_url)
    task_id = user.fail_for_good()
    assert user.run("result", task_id, "--json", code=1).json()["state"] == "FAILURE"
    until(lambda: user.run("dead", "ls", "--json").json(), "the dead letter")

    user.run("dead", "replay", task_id)
    user.run("worker", "-A", "shop:app", "--burst", "-c", "1")

    rows = until(lambda: user.run("dead", "ls", "--json").json(), "the dead letter")
    assert [(row["attempts"], row["replays"]) for row in rows] == [(2, 1)]
