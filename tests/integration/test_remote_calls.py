"""Remote calls in a crowd, and when their server goes: every broker matches answers to callers."""

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from processes import wait_for
from servers import RabbitServer

from taskq import BrokerUnavailable, TaskQ
from taskq.testing import running_worker

_names = itertools.count()
_CROWD = 1000


@pytest.fixture(params=["memory", "sqlite", "rabbitmq"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty broker."""
    if request.param == "rabbitmq":
        return str(request.getfixturevalue("rabbitmq_url"))
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/work.db"
    return f"memory://calls{next(_names)}"


def test_a_thousand_calls_at_once_get_their_own_answers(url: str) -> None:
    """All of them are under way before the first is answered, over one connection."""
    app = TaskQ("shop", broker=url, results="off")

    @app.task(name="triple")
    def triple(x: int) -> int:
        return 3 * x

    def waiting() -> int:
        depth = app.broker.depths(["default"])["default"]
        return 0 if depth is None else depth.ready

    app.broker.declare(["default"])
    with ThreadPoolExecutor(_CROWD) as threads:
        answers = [threads.submit(app.rpc, "triple", (n,), timeout=240) for n in range(_CROWD)]
        wait_for(lambda: waiting() == _CROWD, 120, "a thousand calls in the queue")
        with running_worker(app):
            found = [answer.result(240) for answer in answers]
    app.close()

    assert found == [3 * n for n in range(_CROWD)]


def test_a_server_that_goes_ends_its_calls_at_once(private_rabbitmq: RabbitServer) -> None:
    """A direct reply is lost with its connection: waiting on for the timeout would be in vain."""
    app = TaskQ("shop", broker=private_rabbitmq.url, results="off")
    app.broker.declare(["default"])
    caught: list[BaseException] = []

    def call() -> None:
        try:
            app.rpc("nobody", timeout=600)
        except BaseException as error:
            caught.append(error)

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()

    def under_way() -> bool:
        depth = app.broker.depths(["default"])["default"]
        return depth is not None and depth.ready == 3

    wait_for(under_way, 60, "three calls in the queue")
    private_rabbitmq.kill()
    for thread in threads:
        thread.join(120)
    private_rabbitmq.start()

    @app.task(name="add")
    def add(x: int, y: int) -> int:
        return x + y

    with running_worker(app):
        answer = app.rpc("add", (2, 3), timeout=120)
    app.close()

    assert [type(error) for error in caught] == [BrokerUnavailable] * 3
    assert answer == 5
