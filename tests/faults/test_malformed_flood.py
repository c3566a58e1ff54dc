"""Ten thousand hostile messages of every kind at once: the worker lives, good tasks run."""

import itertools
import os
import time
from collections import Counter

import hostile
import pika
import pytest
from conftest import LONG
from fleet import Fleet, until

from taskq.results.base import is_terminal

COUNT = 10_000
SHORT = 1_500
"""On the second broker: each kind once."""
PATIENCE_S = 60


def flood(url: str, count: int) -> list[hostile.Hostile]:
    """Publish so many messages, each kind again and again with ids of its own."""
    kinds = itertools.chain.from_iterable(hostile.all_kinds() for _ in itertools.count())
    sent = list(itertools.islice(kinds, count))
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    for one in sent:
        channel.basic_publish("", "default", one.body, hostile.RawProperties(one.properties))
    connection.close()
    return sent


@pytest.mark.timeout(600)
def test_a_flood_of_malformed_messages_kills_nobody(
    vhost_fleet: Fleet, vhost: str, rabbitmq_url: str
) -> None:
    """One such message ends a Celery worker, and is delivered to the next one then."""
    fleet = vhost_fleet
    worker = fleet.start(slots=2, env={"TASKQ_UNKNOWN_MAX_AGE_S": "1"})
    fleet.send("add", 1, 1).get(timeout=60)
    executors = sorted(worker.children())

    sent = flood(vhost, COUNT if LONG or vhost == rabbitmq_url else SHORT)
    handles = [fleet.send("add", number, 1) for number in range(20)]

    assert fleet.settled(handles, 120) == list(range(1, 21))
    unread = Counter(one.body for one in sent if not one.harmless)
    with_id = {one.id: one for one in sent if one.id}
    store = fleet.app.results
    assert store is not None

    def missing() -> list[str]:
        ids = list(with_id)
        records = zip(ids, store.fetch(ids), strict=True)
        return [with_id[i].kind for i, data in records if data is None or not is_terminal(data)]

    until(lambda: fleet.ready() == 0, "the empty queue", 120)
    left, since_s = len(sent), time.monotonic()
    while waiting := missing():
        if len(waiting) < left:
            # As long as there is progress it is the machine that is slow.
            left, since_s = len(waiting), time.monotonic()
        # What came again while its first delivery was in hand goes back to the broker for 5 s.
        if time.monotonic() - since_s > PATIENCE_S:
            stats = fleet.app.broker.ask({"command": "stats"}, 5.0)
            pytest.fail(f"no end: {waiting}\n{stats}\n{worker.log()[-5000:]}")
        time.sleep(1)
    letters = fleet.letters()
    bodies = Counter(letter.message.body for letter in letters)
    assert {letter.story["reason"] for letter in letters} <= {"malformed", "unknown_task"}
    assert not unread - bodies, "letters are missing, or their bytes are others"
    for letter in letters:
        one = with_id.get(letter.message.id)
        assert one is None or letter.message.body == one.body, one
    os.kill(worker.pid, 0)
    assert sorted(worker.children()) == executors
    assert "Traceback" not in worker.log()
    assert worker.term(60) == 0
