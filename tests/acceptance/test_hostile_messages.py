"""No message can harm a worker: unreadable ones become dead letters, unknown tasks are parked."""

import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pika
import pytest
from fleet import POOLS, Fleet, until

from taskq import TaskFailed, outcome
from taskq.brokers.base import Outgoing
from taskq.codecs import dumps
from taskq.ids import new_id
from taskq.message import MAX_BODY_BYTES, Message

BODY = dumps([[1, 2], {}, None])
DEEP = b"\x91" * 5000 + b"\xc0"

MALFORMED: dict[str, dict[str, Any]] = {
    "empty body": {"body": b""},
    "random bytes": {"body": bytes(range(256)) * 4},
    "cut short": {"body": BODY[:-1]},
    "trailing bytes": {"body": BODY + b"\x00"},
    "not a list": {"body": dumps("text")},
    "two items": {"body": dumps([[], {}])},
    "args no list": {"body": dumps([{}, {}, None])},
    "kwargs no map": {"body": dumps([[], [], None])},
    "kwargs with number keys": {"body": b"\x93\x90\x81\x01\x02\xc0"},
    "embed no map": {"body": dumps([[], {}, [1]])},
    "chain no list": {"body": dumps([[], {}, {"chain": "x"}])},
    "callback no signature": {"body": dumps([[], {}, {"callbacks": [{"a": 1}]}])},
    "nested too deep": {"body": DEEP},
    "claims gigabytes": {"body": b"\xdd\xff\xff\xff\xff"},
    "pickle": {"body": b"\x80\x04K\x01.", "content_type": "application/x-python-serialize"},
    "json that is none": {"body": b"{", "content_type": "application/json"},
    "json not utf-8": {"body": b'["\xff"]', "content_type": "application/json"},
    "json nested too deep": {"body": b"[" * 100_000, "content_type": "application/json"},
    "unknown type": {"content_type": "image/png"},
    "unknown compression": {"headers": {"compression": "brotli"}},
    "compression that is none": {"headers": {"compression": "application/x-gzip"}},
    "retries negative": {"headers": {"retries": -1}},
    "retries text": {"headers": {"retries": "many"}},
    "retries huge": {"headers": {"retries": 2**62}},
    "eta no date": {"headers": {"eta": "tomorrow"}},
    "eta number": {"headers": {"eta": 12}},
    "expires no date": {"headers": {"expires": "yesterday"}},
    "due text": {"headers": {"taskq-due": "soon"}},
    "timelimit text": {"headers": {"timelimit": "short"}},
    "timelimit negative": {"headers": {"timelimit": [-1, None]}},
    "root_id number": {"headers": {"root_id": 5}},
    "parent_id map": {"headers": {"parent_id": {"a": 1}}},
}


def raw(**changes: Any) -> Message:
    return Message(**{"task": "add", "id": new_id(), "body": BODY, **changes})


def publish(fleet: Fleet, *messages: Message, queue: str = "default") -> None:
    errors = fleet.app.broker.publish([Outgoing(queue, message) for message in messages], 5)
    assert not any(errors), errors


@pytest.mark.parametrize("pool", POOLS)
def test_malformed_messages_become_letters_with_their_bytes(fleet: Fleet, pool: str) -> None:
    """What cannot be read today may be read by who looks into it: not one byte may change."""
    worker = fleet.start(pool=pool, slots=1)
    fleet.send("add", 1, 1).get(timeout=10)
    executors = fleet.send("threads").get(timeout=10)[:1]
    bad = {name: raw(**changes) for name, changes in MALFORMED.items()}

    publish(fleet, *bad.values())

    good = fleet.send("add", 2, 3)
    assert good.get(timeout=10) == 5
    letters = {letter.message.id: letter for letter in fleet.until_letters(len(bad))}
    for name, message in bad.items():
        letter = letters[message.id]
        assert letter.story["reason"] == "malformed", name
        assert letter.story["queue"] == "default", name
        assert letter.message.body == message.body, name
        assert letter.message.content_type == message.content_type, name
        assert letter.message.headers.items() >= message.headers.items(), name
        assert fleet.app.result(message.id).state == outcome.FAILURE, name
    assert len(letters) == len(bad)
    assert worker.process.poll() is None
    assert fleet.send("threads").get(timeout=10)[:1] == executors
    assert "Traceback" not in worker.log()


def test_arguments_that_do_not_fit_are_never_retried(fleet: Fleet) -> None:
    """The sender's release had another signature; waiting does not change it."""
    fleet.start()
    misfits = [
        raw(body=dumps([[1], {}, None])),
        raw(body=dumps([[1, 2, 3], {}, None])),
        raw(body=dumps([[1, 2], {"z": 1}, None])),
        raw(body=dumps([[], {"x": 1}, None])),
    ]

    publish(fleet, *misfits)

    letters = fleet.until_letters(len(misfits))
    assert {letter.story["reason"] for letter in letters} == {"malformed"}
    assert {letter.story["type"] for letter in letters} == {"TypeError"}
    for message in misfits:
        with pytest.raises(TaskFailed):
            fleet.app.result(message.id).get(timeout=5)


def test_a_type_error_of_the_task_itself_is_retried(fleet: Fleet) -> None:
    """Only a call that does not fit is malformed; a bug inside the function is a failure."""
    fleet.start()

    handle = fleet.send("add", 1, "a")

    until(lambda: handle.state == outcome.RETRY, "a retry")


def test_the_largest_body_passes_and_a_bomb_does_not(fleet: Fleet) -> None:
    """Megabytes of zeros compress to nothing, and must not fill the memory when unpacked."""
    worker = fleet.start(slots=1)
    large = fleet.send("nap", 0, "x" * (8 << 20))
    bomb = raw(
        body=zlib.compress(b"\x00" * (MAX_BODY_BYTES * 4)),
        headers={"compression": "application/x-gzip"},
    )

    publish(fleet, bomb)

    assert len(large.get(timeout=20)) == 8 << 20
    (letter,) = fleet.until_letters(1)
    assert (letter.message.id, letter.story["reason"]) == (bomb.id, "malformed")
    assert worker.process.poll() is None


def test_hostile_links_do_not_keep_a_task_from_ending(fleet: Fleet) -> None:
    """A chain step nobody can send is a failure of its task, not an endless redelivery."""
    fleet.start(slots=1)
    step = {"task": "add", "args": "no list", "kwargs": {}, "options": {}}
    chained = raw(body=dumps([[1, 2], {}, {"chain": [step]}]))
    linked = raw(body=dumps([[1, 2], {}, {"callbacks": [step]}]))
    errored = raw(task="not_retried", body=dumps([[], {}, {"errbacks": [step]}]))

    publish(fleet, chained, linked, errored)

    for message in (chained, linked, errored):
        handle = fleet.app.result(message.id)
        until(lambda handle=handle: handle.state == outcome.FAILURE, message.task, 40)
    assert fleet.send("add", 1, 2).get(timeout=10) == 3


@pytest.fixture
def rabbitmq_fleet(rabbitmq_url: str, redis_url: str, tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(tmp_path, rabbitmq_url, redis_url)
    yield made
    made.close()


@pytest.fixture
def channel(rabbitmq_url: str) -> Iterator[Any]:
    """A channel of a plain AMQP client; only RabbitMQ can be spoken to so."""
    connection = pika.BlockingConnection(pika.URLParameters(rabbitmq_url))
    yield connection.channel()
    connection.close()


def test_foreign_publishers_cannot_harm_a_worker(rabbitmq_fleet: Fleet, channel: Any) -> None:
    """Anybody with a password can put anything into a queue, properties of all kinds included."""
    fleet = rabbitmq_fleet
    worker = fleet.start(slots=1)
    fleet.send("add", 1, 1).get(timeout=10)
    properties = [
        pika.BasicProperties(),
        pika.BasicProperties(content_type="application/x-msgpack"),
        pika.BasicProperties(headers={"task": "add"}, content_type="application/x-msgpack"),
        pika.BasicProperties(headers={"id": "x"}, content_type="application/x-msgpack"),
        pika.BasicProperties(headers={"task": 5, "id": "x"}, content_type="application/json"),
        pika.BasicProperties(headers={"task": "add", "id": ["x"]}),
        pika.BasicProperties(headers={"task": "", "id": ""}),
        pika.BasicProperties(headers={"x-death": "hostile", "task": b"\xff", "id": "x"}),
        pika.BasicProperties(headers={"task": "add", "id": "i" * 1000}, priority=255),
        pika.BasicProperties(content_type="x" * 255, message_id="y" * 255, expiration="600000"),
    ]

    for number, each in enumerate(properties):
        channel.basic_publish("", "default", b"garbage %d" % number, each)

    assert fleet.send("add", 2, 3).get(timeout=10) == 5
    bodies = {letter.message.body for letter in fleet.until_letters(len(properties))}
    assert bodies == {b"garbage %d" % number for number in range(len(properties))}
    assert worker.process.poll() is None
    assert worker.term() == 0
    assert fleet.ready() == 0


def test_a_name_cannot_forge_a_line_of_the_log(sqlite_fleet: Fleet) -> None:
    """Names come from whoever can publish; the log is read by people and by programs."""
    worker = sqlite_fleet.start(slots=1)

    publish(sqlite_fleet, raw(task="x\n12:00:00 ERROR   all is lost"), raw(id="y\nERROR"))

    worker.until_log("parked unknown task")
    until(lambda: sqlite_fleet.ready() == 0, "both to be read")
    worker.term()
    assert not [line for line in worker.log().splitlines() if "ERROR" in line.split()[:2]]


# --- unknown tasks


def test_an_unknown_task_waits_for_a_worker_that_knows_it(fleet: Fleet, tmp_path: Path) -> None:
    """In a rolling deploy the new code's tasks meet old workers first."""
    old = fleet.start(slots=1)

    handle = fleet.send("brand_new", 20, 3)

    old.until_log("parked unknown task")
    until(
        lambda: (
            [
                (task["task"], task["id"])
                for answer in fleet.app.broker.ask({"command": "unknown"}, 1.0)
                for task in answer.get("tasks", [])
            ]
            == [("brand_new", handle.id)]
        ),
        "the answer of `inspect unknown`",
        60,
    )
    assert fleet.send("add", 1, 2).get(timeout=10) == 3
    (tmp_path / "release.py").write_text(
        "from taskq import TaskQ\n"
        "app = TaskQ('work')\n"
        "@app.task(name='brand_new')\n"
        "def brand_new(a, b):\n"
        "    return a * b\n"
    )
    fleet.start(app="release:app", slots=1)
    old.term()
    assert handle.get(timeout=20) == 60
    assert not fleet.letters()


def test_a_task_that_nobody_ever_knows_ends_as_a_letter(fleet: Fleet) -> None:
    """Parked for ever is lost in silence; a letter is found."""
    fleet.start(slots=1, env={"TASKQ_UNKNOWN_MAX_AGE_S": "2"})
    began = time.monotonic()

    handle = fleet.send("mistyped", 1)

    with pytest.raises(TaskFailed, match="mistyped"):
        handle.get(timeout=20)
    (letter,) = fleet.until_letters(1)
    assert (letter.message.task, letter.story["reason"]) == ("mistyped", "unknown_task")
    assert 2 <= time.monotonic() - began < 15


def test_cancel_of_a_parked_task_holds(fleet: Fleet) -> None:
    """Unknown here is not unknown everywhere: it can still be called off."""
    worker = fleet.start(slots=1)
    handle = fleet.send("brand_new")
    worker.until_log("parked unknown task")

    assert handle.cancel()

    assert handle.state == outcome.CANCELLED
