"""Stores and brokers of each kind, as fixtures."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from taskq.brokers import open_broker
from taskq.brokers.base import Broker, BrokerOptions

_names = itertools.count()

BrokerFactory = Callable[..., Broker]


@pytest.fixture(params=["amqp", "sqlite", "memory"])
def broker_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty broker for this test alone."""
    if request.param == "amqp":
        return str(request.getfixturevalue("rabbitmq_url"))
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/broker.db"
    return f"memory://broker-{next(_names)}"


@pytest.fixture
def broker_factory(broker_url: str) -> Iterator[BrokerFactory]:
    """Opens brokers at that URL; takes the fields of `BrokerOptions`, and closes all afterwards."""
    opened: list[Broker] = []

    def make(**options: object) -> Broker:
        opened.append(open_broker(broker_url, BrokerOptions(**options)))  # type: ignore[arg-type]
        return opened[-1]

    yield make
    for broker in opened:
        broker.close()


@pytest.fixture
def broker(broker_factory: BrokerFactory) -> Broker:
    """A broker with default options."""
    return broker_factory()
