"""A RabbitMQ that is killed, restarted, stopped, or full, under workers and senders."""

import time
from functools import partial

from conftest import LONG, OpenSite
from servers import RabbitServer
from site_of_faults import Site, fault


def test_a_broker_that_dies_and_comes_back_has_lost_nothing(
    node: RabbitServer, redis_url: str, new_site: OpenSite, seconds: float
) -> None:
    """Immediate, delayed, retried and dead-lettered messages are in flight at each blow."""
    site = new_site(node.url, redis_url)

    def crash() -> None:
        node.kill()
        node.start()

    def stand_still() -> None:
        node.pause()
        time.sleep(site.rng.uniform(1, 6))
        node.resume()

    site.run(fault("kill -9", crash), seconds)
    site.run(fault("graceful restart", node.restart), seconds)
    site.run(fault("SIGSTOP", stand_still), seconds)
    _alarms(site, node, seconds)


def _alarms(site: Site, node: RabbitServer, seconds: float) -> None:
    """Senders are told; workers' acknowledgements go on, so a full broker is emptied."""

    def raise_alarm(kind: str) -> None:
        node.eval(f"rabbit_alarm:set_alarm({{{{resource_limit, {kind}, node()}}, []}})")
        time.sleep(site.rng.uniform(1, 3))
        node.eval(f"rabbit_alarm:clear_alarm({{resource_limit, {kind}, node()}})")

    # One of them in the short form: they are raised, told and lifted in the same way.
    for kind in ("memory", "disk") if LONG else (site.rng.choice(("memory", "disk")),):
        row = site.run(fault(f"{kind} alarm", partial(raise_alarm, kind)), seconds)
        # Nothing lost its channel, so nothing came again.
        assert row.account.duplicated == 0
