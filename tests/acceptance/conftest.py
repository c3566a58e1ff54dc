"""A fleet of workers on each broker."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet import Fleet


@pytest.fixture(params=["sqlite", "rabbitmq"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    """URLs of an empty broker and an empty results store."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/work.db"
        return url, url
    return request.getfixturevalue("rabbitmq_url"), request.getfixturevalue("redis_url")


@pytest.fixture
def fleet(backend: tuple[str, str], tmp_path: Path) -> Iterator[Fleet]:
    """A fleet on this backend; what still runs at the end is killed."""
    made = Fleet(tmp_path, *backend)
    yield made
    made.close()


@pytest.fixture
def sqlite_fleet(tmp_path: Path) -> Iterator[Fleet]:
    """A fleet on the embedded broker, for what has nothing to do with brokers."""
    url = f"sqlite:///{tmp_path}/work.db"
    made = Fleet(tmp_path, url, url)
    yield made
    made.close()
