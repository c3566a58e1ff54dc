"""Publish and subscribe, and calls that wait for an answer, on every broker."""

import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from processes import wait_for

from taskq import BrokerUnavailable, ResultTimeout, TaskFailed, TaskQ
from taskq.config import WorkerSettings
from taskq.testing import running_worker
from taskq.worker.worker import LocalWorker

_names = itertools.count()


@pytest.fixture(params=["memory", "sqlite", "rabbitmq"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty broker."""
    if request.param == "rabbitmq":
        return str(request.getfixturevalue("rabbitmq_url"))
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/work.db"
    return f"memory://pubsub{next(_names)}"


@pytest.fixture
def app(url: str) -> Iterator[TaskQ]:
    made = TaskQ("shop", broker=url, results=f"memory://pubsub{next(_names)}", max_retries=1)
    yield made
    made.close()


class Heard:
    """What subscribers got."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, Any]] = []

    def of(self, name: str) -> list[Any]:
        return [message for who, message in self.messages if who == name]

    def wait(self, count: int) -> None:
        wait_for(lambda: len(self.messages) >= count, 60, f"{count} messages")


PATTERNS = ["orders.*", "orders.#", "#", "*.created", "orders.created", "*.*.eu", "#.eu"]
KEYS = ["orders", "orders.created", "orders.created.eu", "stock.created", "a.b.eu", "eu"]


def test_each_subscriber_gets_what_its_pattern_matches(app: TaskQ) -> None:
    """A table of keys and patterns; the embedded broker answers as RabbitMQ does."""
    from taskq.topics import key_matches

    heard = Heard()
    for pattern in PATTERNS:

        @app.subscribe(pattern, name=f"on-{PATTERNS.index(pattern)}")
        def handler(message: str, who: str = pattern) -> None:
            heard.messages.append((who, message))

    wanted = {pattern: [k for k in KEYS if key_matches(pattern, k)] for pattern in PATTERNS}

    with running_worker(app):
        for key in KEYS:
            app.publish(key, key)
        heard.wait(sum(map(len, wanted.values())))

    assert {pattern: sorted(heard.of(pattern)) for pattern in PATTERNS} == {
        pattern: sorted(keys) for pattern, keys in wanted.items()
    }


def test_headers_decide_with_all_or_any(app: TaskQ) -> None:
    """Routing by what a message is, not by its key."""
    heard = Heard()
    every: dict[str, Any] = {"type": "pdf", "size": 3}

    @app.subscribe(headers=every, name="all")
    def on_all(message: str) -> None:
        heard.messages.append(("all", message))

    @app.subscribe(headers={**every, "x-match": "any"}, name="any")
    def on_any(message: str) -> None:
        heard.messages.append(("any", message))

    with running_worker(app):
        app.publish("x", "both", headers={"type": "pdf", "size": 3})
        app.publish("x", "one", headers={"type": "pdf", "size": 4})
        app.publish("x", "other", headers={"type": "txt"})
        app.publish("x", "bare")
        app.publish("x", "size", headers={"size": 3, "more": "y"})
        heard.wait(4)

    assert sorted(heard.of("all")) == ["both"]
    assert sorted(heard.of("any")) == ["both", "one", "size"]


def test_a_subscriber_gets_what_it_missed_and_retries_alone(app: TaskQ) -> None:
    """Durable by name; one subscriber's failure is not the other's."""
    heard = Heard()
    failures: list[str] = []

    @app.subscribe("orders.#", name="steady", bind=True)
    def steady(self: Any, message: dict[str, int]) -> None:
        heard.messages.append(("steady", (message["n"], self.request.headers["taskq-key"])))

    @app.subscribe("orders.#", name="flaky", max_retries=3)
    def flaky(message: dict[str, int]) -> None:
        if message["n"] == 1 and not failures:
            failures.append("once")
            raise OSError("not now")
        heard.messages.append(("flaky", message["n"]))

    # No worker runs yet.
    for n in range(3):
        app.publish("orders.created", {"n": n})

    with running_worker(app):
        heard.wait(6)

    assert sorted(heard.of("flaky")) == [0, 1, 2]
    assert sorted(heard.of("steady")) == [(n, "orders.created") for n in range(3)]
    assert failures == ["once"]


def test_broadcast_reaches_every_worker(app: TaskQ, url: str) -> None:
    """Such as clearing a cache in each process; what is shared is taken by one."""
    heard = Heard()

    @app.subscribe("cache.clear", name="each", broadcast=True, bind=True)
    def each(self: Any, message: str) -> None:
        heard.messages.append((self.request.worker, message))

    workers = []
    for name in ("one", "two"):
        settings = WorkerSettings(pool="solo", name=name)
        worker = LocalWorker(app, settings, share=True)
        worker.start()
        thread = threading.Thread(target=worker.serve)
        thread.start()
        workers.append((worker, thread))
    try:
        wait_for(lambda: len(app.broker.ask({"command": "ping"}, 1.0)) == 2, 60, "two workers")
        app.publish("cache.clear", "all")
        heard.wait(2)
    finally:
        for worker, thread in workers:
            worker.stop()
            thread.join()
    app.publish("cache.clear", "nobody is here")
    app.publish("nobody.listens", "at all")

    assert sorted(heard.messages) == [("one", "all"), ("two", "all")]


def test_calls_get_their_own_answers(app: TaskQ) -> None:
    """Concurrent calls over one connection: each caller gets its answer, and no other."""

    @app.task(name="double")
    def double(x: int) -> int:
        return 2 * x

    with running_worker(app), ThreadPoolExecutor(20) as threads:
        numbers = list(range(200))
        answers = list(threads.map(lambda n: app.rpc("double", (n,), timeout=60), numbers))

    assert answers == [2 * n for n in numbers]


def test_failures_of_a_call_are_raised_where_it_was_made(app: TaskQ) -> None:
    """After its retries, as the exception it was."""
    runs = []

    @app.task(name="fail")
    def fail(word: str) -> None:
        runs.append(word)
        raise KeyError(word)

    with running_worker(app), pytest.raises(KeyError) as caught:
        app.rpc("fail", ("missing",), timeout=60)

    assert isinstance(caught.value, TaskFailed)
    assert runs == ["missing", "missing"]


def test_a_call_without_a_worker_ends_in_time(app: TaskQ) -> None:
    """And is not run later: nobody waits for it any more."""
    ran = []

    @app.task(name="late")
    def late(n: int) -> int:
        ran.append(n)
        return n

    started = time.monotonic()
    with pytest.raises(ResultTimeout):
        app.rpc("late", (1,), timeout=0.5)
    took_s = time.monotonic() - started
    with running_worker(app):
        assert app.rpc("late", (2,), timeout=60) == 2

    assert 0.5 <= took_s < 30
    assert ran == [2]


def test_results_off_is_no_obstacle(url: str) -> None:
    """The answer travels by itself."""
    app = TaskQ("shop", broker=url, results="off")

    @app.task(name="add")
    def add(x: int, y: int) -> int:
        return x + y

    with running_worker(app):
        assert app.rpc("add", (2, 3), timeout=60) == 5
    app.close()


def test_a_broker_that_is_away_is_said_at_once() -> None:
    """Not after the timeout of the answer."""
    app = TaskQ("shop", broker="amqp://guest:guest@127.0.0.1:9//", results="off")

    with pytest.raises(BrokerUnavailable):
        app.rpc("add", (2, 3), timeout=20)
    app.close()
