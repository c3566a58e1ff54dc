"""Fixtures of the integration tests: brokers on a vhost of the test's own."""

from collections.abc import Callable, Iterator
from typing import Any

import pika
import pytest

from taskq.brokers import open_broker
from taskq.brokers.base import Broker, BrokerOptions

Open = Callable[..., Broker]


@pytest.fixture
def opener() -> Iterator[Open]:
    """Opens brokers at any URL and closes them afterwards."""
    opened: list[Broker] = []

    def make(url: str, **options: Any) -> Broker:
        opened.append(open_broker(url, BrokerOptions(**options)))
        return opened[-1]

    yield make
    for broker in opened:
        broker.close()


@pytest.fixture
def broker(opener: Open, rabbitmq_url: str) -> Broker:
    return opener(rabbitmq_url)


@pytest.fixture
def channel(rabbitmq_url: str) -> Iterator[Any]:
    """A channel of pika's, for what another program would do."""
    connection = pika.BlockingConnection(pika.URLParameters(rabbitmq_url))
    yield connection.channel()
    connection.close()
