"""A Redis that is killed, restarted, slow, or emptied: nothing is settled without its state."""

import time

from servers import RedisServer
from site_of_faults import Site, fault

from taskq.torture.account import Runs, settle
from taskq.torture.load import Load


def test_a_results_store_that_comes_back_has_lost_nothing(
    private_site: Site, private_redis: RedisServer, seconds: float
) -> None:
    """Consuming stands still meanwhile, and goes on by itself."""
    site, redis = private_site, private_redis

    def crash() -> None:
        redis.kill()
        time.sleep(site.rng.uniform(0, 2))
        redis.start()

    def slow() -> None:
        redis.pause()
        time.sleep(site.rng.uniform(0.5, 3))
        redis.resume()

    killed = site.run(fault("kill -9", crash), seconds)
    restarted = site.run(fault("restart", redis.restart), seconds)
    slowed = site.run(fault("SIGSTOP", slow), seconds)

    for row in (killed, restarted, slowed):
        # What was in hand is kept there until its state is stored, and is not run again.
        assert row.account.duplicated == 0
    _emptied(site, redis, seconds)


def _emptied(site: Site, redis: RedisServer, seconds: float) -> None:
    """FLUSHALL by mistake: what was known is gone, what was sent still runs."""
    site.bench.fleet.fill()
    load = Load(site.bench.app, 60, site.rng)
    load.start()
    for _ in range(3):
        time.sleep(seconds / 4)
        redis.ctl("FLUSHALL")
    time.sleep(seconds / 4)
    load.stop()

    account = settle(site.bench.app, load, site.bench.fleet.runs_path, 90, stored=False)

    assert not account.lost
    assert not account.early
    assert not account.queued
    assert Runs(site.bench.fleet.runs_path).ended >= set(load.confirmed)
