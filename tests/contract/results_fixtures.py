"""A results store of each kind, as fixtures."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskq.results import open_results
from taskq.results.base import ResultStore

_names = itertools.count()


@pytest.fixture(params=["redis", "sqlite", "memory"])
def results_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty store for this test alone."""
    if request.param == "redis":
        return str(request.getfixturevalue("redis_url"))
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/results.db"
    return f"memory://results-{next(_names)}"


@pytest.fixture
def store(results_url: str) -> Iterator[ResultStore]:
    """The store at that URL, closed afterwards."""
    opened = open_results(results_url)
    yield opened
    opened.close()
