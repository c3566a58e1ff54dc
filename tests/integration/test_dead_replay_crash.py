"""A replay of dead letters that is killed, and gone on with: every letter exactly once."""

import signal
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pika
import pytest
from broker_helpers import ready, wait_ready
from embedded_helpers import consuming
from processes import wait_for

from taskq import resend
from taskq.body import encode_call
from taskq.brokers import open_broker, rabbitmq_dead
from taskq.brokers.base import DEAD_QUEUE, Broker, BrokerOptions, Outgoing
from taskq.dead import DeadLetters, Filter, Journals
from taskq.errors import ConfigError, RemoteError

ROOT = Path(__file__).parents[2]
LETTERS = 120

REPLAY = """
import os, signal, sys

from taskq.brokers import open_broker, rabbitmq_dead, rabbitmq_replay, sqlite_dead
from taskq.brokers.base import BrokerOptions
from taskq.dead import DeadLetters, Filter, Journals

url, state, moment = sys.argv[1:]


def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


if moment == "before the removal":
    rabbitmq_dead.DeadSweep._ack = die
    sqlite_dead.sqlite_rows.insert = die
if moment == "before anything":
    rabbitmq_replay.RabbitReplay._stage = die
    sqlite_dead._apply = die
gone = 0


def progress(count):
    global gone
    gone += 1
    if moment == "on the way" and count > 40:
        die()


letters = DeadLetters(open_broker(url, BrokerOptions()), None, Journals(state))
chosen = letters.choose(Filter(reason="failed"))
letters.replay(chosen, rate_per_s=400, progress=progress)
raise SystemExit("nobody killed it")
"""


@pytest.fixture(params=["amqp", "sqlite"])
def broker_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty broker that outlives a process."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/broker.db"
    return str(request.getfixturevalue("rabbitmq_url"))


def bury(broker: Broker, count: int, reason: str = "failed") -> list[str]:
    error = RemoteError("builtins", "ValueError", "no")
    batch = []
    for number in range(count):
        call = encode_call("t", f"{reason}-{number:04}", [number], {})
        letter = resend.dead(call, reason, "q", error=error, attempts=2, worker="w")
        batch.append(Outgoing("q", letter, dead=True))
    assert broker.publish(batch, 30) == [None] * count
    return [one.message.id for one in batch]


def take_all(broker: Broker, count: int) -> Counter[str]:
    """Return how often each id is in the queue, which must then be empty."""
    wait_ready(broker, count)
    with consuming(broker, ["q"], prefetch=count + 50) as hub:
        found = hub.wait_for(count, 60)
        hub.consumer.settle([one.receipt for one in found])
    wait_ready(broker, 0)
    return Counter(one.message.id for one in found)


@pytest.mark.parametrize("moment", ["before anything", "before the removal", "on the way"])
def test_a_killed_replay_is_gone_on_with_exactly_once(
    broker_url: str, tmp_path: Path, moment: str
) -> None:
    """Twice is a customer who is charged twice; never is an order that nobody ships."""
    state = tmp_path / "state"
    broker = open_broker(broker_url, BrokerOptions())
    try:
        broker.declare(["q"])
        sent = bury(broker, LETTERS)
        others = bury(broker, 7, "rejected")
        wait_ready(broker, LETTERS + 7, DEAD_QUEUE)

        done = subprocess.run(
            [sys.executable, "-c", REPLAY, broker_url, str(state), moment],
            env={"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == -signal.SIGKILL, done.stderr
        # Tasks that fail again meanwhile, under the same ids, were not chosen.
        late = bury(broker, 3)
        assert set(late) <= set(sent)

        letters = DeadLetters(broker, None, Journals(str(state)))
        (journal,) = Journals(str(state)).unfinished(broker.url, "")
        letters.resume(journal)

        assert take_all(broker, LETTERS) == Counter(sent)
        wait_for(
            lambda: sorted(one.id for one in letters.list()) == sorted([*others, *late]),
            30,
            "the letters that were not chosen",
        )
        assert Journals(str(state)).unfinished(broker.url, "") == []
        assert Journals(str(state)).load(journal.job).ended is not None
    finally:
        broker.close()


def left_half_way(broker: Broker, url: str, state: Path) -> list[str]:
    """Leave letters whose messages are on their way, by a replay that nobody has a journal of."""
    broker.declare(["q"])
    sent = bury(broker, LETTERS)
    wait_ready(broker, LETTERS, DEAD_QUEUE)
    subprocess.run(
        [sys.executable, "-c", REPLAY, url, str(state), "before the removal"],
        env={"PYTHONPATH": str(ROOT)},
        timeout=120,
        check=False,
    )
    return sent


def test_what_was_on_its_way_is_sent_also_without_the_journal(
    rabbitmq_url: str, tmp_path: Path
) -> None:
    """The machine of whoever began it may be gone for ever."""
    broker = open_broker(rabbitmq_url, BrokerOptions())
    try:
        sent = left_half_way(broker, rabbitmq_url, tmp_path)
        letters = DeadLetters(broker)

        with pytest.raises(ConfigError, match="letters on their way"):
            letters.replay(letters.choose(Filter()))
        wait_ready(broker, LETTERS, DEAD_QUEUE)
        wait_ready(broker, 0)

        assert sorted(letters.resume()) == sent
        assert take_all(broker, LETTERS) == Counter(sent)
        wait_ready(broker, 0, DEAD_QUEUE)
    finally:
        broker.close()


def test_letters_that_somebody_else_holds_do_not_stay_dead(
    rabbitmq_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed replay's own, before the broker noticed, or those of a listing under way."""
    walks: list[int] = []
    walk = rabbitmq_dead.DeadSweep.run

    def count_walks(sweep: rabbitmq_dead.DeadSweep, visit: Any) -> int:
        walks.append(walk(sweep, visit))
        return walks[-1]

    monkeypatch.setattr(rabbitmq_dead, "_OTHERS_S", 0.2)
    broker = open_broker(rabbitmq_url, BrokerOptions())
    connection = pika.BlockingConnection(pika.URLParameters(rabbitmq_url))
    try:
        sent = left_half_way(broker, rabbitmq_url, tmp_path)
        wait_ready(broker, LETTERS, DEAD_QUEUE)
        channel = connection.channel()
        held = [channel.basic_get("taskq.dead") for _ in range(LETTERS // 3)]
        assert all(method for method, _, _ in held)
        with ThreadPoolExecutor(1) as pool:
            monkeypatch.setattr(rabbitmq_dead.DeadSweep, "run", count_walks)
            resumed = pool.submit(DeadLetters(broker).resume)
            # It has removed all letters that it can see, and waits for the others.
            wait_for(lambda: len(walks) > 1, 60, "the second walk")
            assert ready(broker) == 0

            connection.close()

            assert sorted(resumed.result(120)) == sent
        assert take_all(broker, LETTERS) == Counter(sent)
        wait_ready(broker, 0, DEAD_QUEUE)
    finally:
        if connection.is_open:
            connection.close()
        broker.close()
