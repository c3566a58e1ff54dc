"""Servers that may be killed, on each version of RabbitMQ, and a proxy in front of them."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from proxy import Proxy
from servers import RabbitServer

# Workers as the acceptance tests start them: `fleet` lies there.
sys.path.insert(0, str(Path(__file__).parents[1] / "acceptance"))

from fleet import Fleet

LONG = bool(os.environ.get("LONG") or os.environ.get("TORTURE"))
"""Whether the long forms run."""


@pytest.fixture(params=["rabbitmq 3.10", "rabbitmq 4"])
def node(request: pytest.FixtureRequest) -> RabbitServer:
    """A RabbitMQ of this test alone, of each version there is."""
    name = "private_rabbitmq4" if request.param == "rabbitmq 4" else "private_rabbitmq"
    server: RabbitServer = request.getfixturevalue(name)
    return server


@pytest.fixture
def new_proxy() -> Iterator[Callable[[int], Proxy]]:
    """Makes a proxy in front of a port."""
    made: list[Proxy] = []

    def make(port: int) -> Proxy:
        made.append(Proxy(port))
        return made[-1]

    yield make
    for proxy in made:
        proxy.close()


@pytest.fixture(params=["sqlite", "rabbitmq"])
def crash_fleet(request: pytest.FixtureRequest, tmp_path: Path) -> "Iterator[Fleet]":
    """Workers that may die, on an empty broker, with results."""
    if request.param == "sqlite":
        urls = (f"sqlite:///{tmp_path}/work.db",) * 2
    else:
        urls = (request.getfixturevalue("rabbitmq_url"), request.getfixturevalue("redis_url"))
    made = Fleet(tmp_path, *urls)
    yield made
    made.close()
