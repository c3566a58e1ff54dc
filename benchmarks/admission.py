"""CPU that limits add per task at admission and release, beside a batch without limits.

    python benchmarks/admission.py [--rounds 20] [--batch 200] [--json]

What the hub does for a batch (question, round trip, verdicts, giving back) is timed in this process
in CPU time, without and with limits in turn, on a private Redis and on a file. `server` is the CPU
of the Redis process. A round trip is one exchange with Redis, or one transaction in the file. The
last rows hold 10,000 slots of one key meanwhile.
"""

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests"), str(HERE)]

from servers import RedisServer  # noqa: E402
from tree import cpu_s  # noqa: E402

from taskq import CircuitBreaker, RetryBudget, TaskQ, outcome  # noqa: E402
from taskq.body import encode_call  # noqa: E402
from taskq.brokers.base import Delivery  # noqa: E402
from taskq.envelope import read_envelope  # noqa: E402
from taskq.message import KEYS  # noqa: E402
from taskq.results import open_results  # noqa: E402
from taskq.results.base import ResultStore  # noqa: E402
from taskq.worker.endings import Ending  # noqa: E402
from taskq.worker.gates import Gates  # noqa: E402
from taskq.worker.held import Held  # noqa: E402
from taskq.worker.manifest import make_manifest  # noqa: E402

app = TaskQ("admission", broker="memory://admission", results="memory://admission")
SLOTS = 10_000
MANY: Any = {"rate_limit": "1000000/s", "rate_burst": 1_000_000, "max_concurrency": SLOTS}


@app.task(name="plain")
def plain() -> None:
    """Declare nothing."""


@app.task(name="rate and slots", **MANY)
def rate_and_slots() -> None:
    """Declare two limits."""


@app.task(
    name="all six",
    unique="until_done",
    unique_key="args[0]",
    idempotency_key="args[0]",
    circuit_breaker=CircuitBreaker(failures=5, window_s=60, reset_s=30),
    retry_budget=RetryBudget(share=0.1),
    **MANY,
)
def all_six(number: int) -> None:
    """Declare every limit."""


class Hall:
    """What gates need of an intake."""

    last_cancel = 0

    def __init__(self, store: ResultStore) -> None:
        self.gates: list[Any] = []
        self.fetch = lambda batch: store.fetch_news(
            [held.delivery.message.id for held in batch], 0
        )[0]

    def learn_cancels(self, news: object) -> None:
        """Forget them."""


_numbers = itertools.count()


def batch_of(name: str, count: int) -> list[Held]:
    """Return deliveries as a hub has them."""
    info = make_manifest(app).tasks[name]
    found = []
    for number in itertools.islice(_numbers, count):
        headers = {KEYS: {"u": str(number), "i": str(number), "x": ""}}
        message = encode_call(
            name,
            f"01997a53-{number:08d}",
            (number,),
            {},
            headers=headers if name == "all six" else None,
        )
        delivery = Delivery((0, number), "default", message)
        found.append(Held(number, delivery, read_envelope(message), info))
    return found


def one_batch(gates: Gates, batch: list[Held]) -> None:
    """Admit a batch and give back what it held, as hub and settler do."""
    gates.fetch(batch)
    if not gates.idle():
        gates.ask(batch)
    endings = [(held, Ending(outcome.SUCCESS)) for held in batch]
    gates.collect(endings)
    held = [ending.release for _, ending in endings if ending.release is not None]
    if held:
        gates.release(held)


def measure(store: ResultStore, rounds: int, size: int, pid: int) -> dict[str, Any]:
    """Return by task: CPU per task in us here and in the server, medians over the rounds."""
    gates = Gates(make_manifest(app), store, "w", Hall(store))  # type: ignore[arg-type]
    names = [name for name in app.tasks if name in ("plain", "rate and slots", "all six")]
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for number in range(rounds + 2):
        for name in names:
            batches = [batch_of(name, size) for _ in range(10)]
            before_s, server_s = time.process_time(), cpu_s([pid]) if pid else 0.0
            for batch in batches:
                one_batch(gates, batch)
            here = (time.process_time() - before_s) / (10 * size) * 1e6
            there = ((cpu_s([pid]) if pid else 0.0) - server_s) / (10 * size) * 1e6
            if number >= 2:
                spent[name].append((here, there))
    return {
        name: {
            "cpu_us": round(statistics.median(here for here, _ in found), 1),
            "server_us": round(statistics.mean(there for _, there in found), 1),
        }
        for name, found in spent.items()
    }


def hold(store: ResultStore, count: int) -> Gates:
    """Hold slots of every limited task, as tasks do that run."""
    gates = Gates(make_manifest(app), store, "other", Hall(store))  # type: ignore[arg-type]
    for name in ("rate and slots", "all six"):
        for _ in range(0, count, 500):
            gates.fetch(batch_of(name, 500))
    return gates


@contextmanager
def places() -> Iterator[Callable[[str], tuple[ResultStore, int]]]:
    """Yield what opens an empty store of a kind, with the pid of its server or 0."""
    with tempfile.TemporaryDirectory() as name:
        server = RedisServer(Path(name) / "redis", databases=64)
        server.start()
        numbers = itertools.count(1)

        def opened(kind: str) -> tuple[ResultStore, int]:
            number = next(numbers)
            if kind == "redis":
                url = f"redis://127.0.0.1:{server.port}/{number}"
                return open_results(url), server.pid
            return open_results(f"sqlite:///{name}/{number}.db"), 0

        try:
            yield opened
        finally:
            server.destroy()


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batch", type=int, default=200, help="tasks in a batch")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    with places() as opened:
        for kind in ("redis", "sqlite"):
            for held in (0, SLOTS - 1000):
                store, pid = opened(kind)
                if held:
                    hold(store, held)
                found = measure(store, options.rounds, options.batch, pid)
                base = found["plain"]["cpu_us"]
                for name, row in found.items():
                    added = round(row["cpu_us"] - base, 1)
                    rows.append({"store": kind, "held": held, "task": name, **row, "added": added})
                    if not options.json:
                        print(json.dumps(rows[-1]), flush=True)
                store.close()
    if options.json:
        print(json.dumps(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
