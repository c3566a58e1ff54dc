"""A place to cause faults at: client, workers and, where wanted, proxies."""

import random
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from taskq.torture.campaign import Row, isolated, make_client, make_random, run_fault
from taskq.torture.faults import FAULTS, Bench, Fault
from taskq.torture.fleet import Fleet
from taskq.torture.place import new_prefix
from taskq.torture.proxy import proxied

KNOWN = {fault.name: fault for fault in FAULTS}
RATE = 60.0
"""Tasks a second: what two workers on half a core of a busy machine can do."""


class Site:
    """What the faults act on; `close` ends all of it."""

    def __init__(
        self, directory: Path, broker: str, results: str, *, network: bool = False
    ) -> None:
        self._stack = ExitStack()
        rng, self.seed = make_random(None)
        print(f"seed {self.seed}")
        prefix = "" if broker.startswith("sqlite:") else new_prefix()
        proxies = []
        if network:
            broker, first = proxied(broker)
            results, second = proxied(results)
            proxies = [first, second]
            for proxy in proxies:
                self._stack.callback(proxy.close)
        settings = {
            "TASKQ_BROKER": broker,
            "TASKQ_RESULTS": results,
            "TASKQ_PREFIX": prefix,
            "TASKQ_LEASE_S": "2",
        }
        self._stack.enter_context(isolated(directory, {}))
        app = self._stack.enter_context(make_client(broker, results, prefix))
        fleet = Fleet(directory, settings)
        self._stack.callback(fleet.close)
        self.bench = Bench(app, fleet, rng, proxies)

    @property
    def rng(self) -> random.Random:
        """Decides about moments and victims."""
        return self.bench.rng

    def run(self, fault: Fault | str, seconds: float = 6.0) -> Row:
        """Cause a fault under load and check what must hold after every one."""
        chosen = KNOWN[fault] if isinstance(fault, str) else fault
        row = run_fault(self.bench, chosen, seconds, RATE)
        told = f"{row.as_dict()} seed {self.seed}"
        assert row.strikes, told
        assert not row.failures, told
        assert not row.account.left_delayed, told
        return row

    def close(self) -> None:
        """End workers, proxies and the client."""
        self._stack.close()


def fault(name: str, strike: Callable[[], object], pause_s: tuple[float, float] = (1, 2)) -> Fault:
    """Return a fault of the tests' own: `strike` does it and undoes it."""
    return Fault(name, name, lambda _: strike() and None, pause_s)
