"""Servers that may be killed, on each version of RabbitMQ, and proxies in front of them.

`LONG=1` or `TORTURE=1` makes the randomised tests run for minutes instead of seconds.
"""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from servers import RabbitServer, RedisServer

from taskq.torture.proxy import Proxy

# The fleet and the app of the acceptance tests serve here too.
sys.path.append(str(Path(__file__).parents[1] / "acceptance"))

from fleet import Fleet
from site_of_faults import Site

LONG = bool(os.environ.get("LONG") or os.environ.get("TORTURE"))
OpenSite = Callable[..., Site]
PLACES = ("sqlite", "rabbitmq", "rabbitmq4") if LONG else ("sqlite", "rabbitmq")
"""Where fleets work; settlement and restarts hardly depend on the version of RabbitMQ."""


def urls_of(request: pytest.FixtureRequest, directory: Path) -> tuple[str, str]:
    """Return the URLs of an empty broker and results store at the place that is the parameter."""
    if request.param == "sqlite":
        url = f"sqlite:///{directory}/work.db"
        return url, url
    broker: str = request.getfixturevalue(f"{request.param}_url")
    return broker, request.getfixturevalue("redis_url")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give these the time they need: the long forms, and servers that boot on a busy machine."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(3600 if LONG else 600))


@pytest.fixture
def seconds() -> float:
    """How long the load of one fault lasts."""
    return 60.0 if LONG else 3.0


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


@pytest.fixture(params=PLACES)
def crash_fleet(request: pytest.FixtureRequest, tmp_path: Path) -> "Iterator[Fleet]":
    """Workers that may die, on an empty broker, with results."""
    made = Fleet(tmp_path, *urls_of(request, tmp_path))
    yield made
    made.close()


@pytest.fixture
def new_site(tmp_path: Path) -> Iterator[OpenSite]:
    """Opens a place for faults; the arguments are `Site`'s after the first."""
    made: list[Site] = []

    def make(broker: str, results: str, *, network: bool = False) -> Site:
        made.append(Site(tmp_path, broker, results, network=network))
        return made[-1]

    yield make
    for site in made:
        site.close()


@pytest.fixture
def node_fleet(node: RabbitServer, redis_url: str, tmp_path: Path) -> Iterator[Fleet]:
    """A fleet on a RabbitMQ of this test alone."""
    made = Fleet(tmp_path, node.url, redis_url)
    yield made
    made.close()


@pytest.fixture(params=["rabbitmq_url", "rabbitmq4_url"])
def vhost(request: pytest.FixtureRequest) -> str:
    """URL of an empty vhost on the shared RabbitMQ of each version."""
    url: str = request.getfixturevalue(request.param)
    return url


@pytest.fixture
def vhost_fleet(vhost: str, redis_url: str, tmp_path: Path) -> Iterator[Fleet]:
    """A fleet on an empty vhost."""
    made = Fleet(tmp_path, vhost, redis_url)
    yield made
    made.close()


@pytest.fixture
def private_site(
    private_rabbitmq: RabbitServer, private_redis: RedisServer, new_site: OpenSite
) -> Site:
    """Workers on a RabbitMQ and a Redis of this test alone."""
    return new_site(private_rabbitmq.url, private_redis.url)
