"""Workers that are killed, stopped and replaced at random moments: no task is lost."""

from pathlib import Path

import pytest
from conftest import OpenSite
from site_of_faults import Site


@pytest.fixture(params=["sqlite", "rabbitmq_url", "rabbitmq4_url"])
def site(request: pytest.FixtureRequest, new_site: OpenSite, tmp_path: Path) -> Site:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/faults.db"
        return new_site(url, url)
    return new_site(request.getfixturevalue(request.param), request.getfixturevalue("redis_url"))


def test_workers_that_die_at_random_moments_lose_nothing(site: Site, seconds: float) -> None:
    """What a dead worker or executor held is run by another; only what was running runs twice."""
    killed = site.run("kill", seconds)
    # Per kill: what ran, and what had ended and was not settled yet.
    assert killed.account.duplicated <= killed.strikes * (site.bench.fleet.slots + 50)

    # The death of an executor costs its task an attempt: no attempt is begun twice, but for one
    # that dies between the end of its run and the word of it.
    executors = site.run("executor", seconds)
    assert executors.account.duplicated <= executors.strikes


def test_workers_that_stop_for_a_while_or_for_good_lose_nothing(site: Site, seconds: float) -> None:
    """A zombie's work was done by others, and what it stores counts no more; TERM is in order."""
    zombies = site.run("stop", seconds)
    assert zombies.account.duplicated <= zombies.strikes * (site.bench.fleet.slots + 50)

    restarts = site.run("restart", seconds)
    assert restarts.account.duplicated == 0
