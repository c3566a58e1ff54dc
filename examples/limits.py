"""Rates, slots, unique tasks and a circuit breaker, shared by all workers.

python examples/limits.py
"""

import sys
import time
from pathlib import Path

from taskq import AlreadyQueued, CircuitBreaker, RetryPolicy, TaskQ

app = TaskQ("limits")


@app.task(rate_limit="10/s")
def call_partner(number: int) -> float:
    return time.time()


@app.task(max_concurrency=2, concurrency_key="tenant")
def import_file(tenant: str, number: int) -> tuple[float, float]:
    began_s = time.time()
    time.sleep(0.1)
    return began_s, time.time()


@app.task(unique="until_done", unique_key="report", on_duplicate="raise")
def build(report: str) -> str:
    time.sleep(0.2)
    return f"{report} is built"


@app.task(
    max_retries=10,
    retry=RetryPolicy(base_s=0),
    circuit_breaker=CircuitBreaker(failures=3, window_s=60, reset_s=1, on=(ConnectionError,)),
)
def push(service: str) -> str:
    if not Path(service).exists():
        raise ConnectionError("the service is down")
    return "pushed"


def most_at_once(spans: list[tuple[float, float]]) -> int:
    return max(sum(begin <= at < end for begin, end in spans) for at, _ in spans)


def main(service: Path) -> None:
    sent_s = time.time()
    calls = app.send_many([call_partner.s(number) for number in range(20)])
    imports = app.send_many([import_file.s("acme", number) for number in range(8)])
    report = build.delay("sales")
    try:
        build.delay("sales")
    except AlreadyQueued as error:
        print("a second report:", error)
        known = error.task_id
    else:
        raise AssertionError("the second report was sent")
    assert known == report.id
    pushes = app.send_many([push.s(str(service)) for _ in range(6)])

    starts = sorted(call.get(timeout=60) for call in calls)
    print(f"20 calls at 10/s took {starts[-1] - sent_s:.1f} s")
    # Half a second's worth may come at once.
    assert starts[-1] - sent_s > 1.4

    spans = [(began_s, ended_s) for began_s, ended_s in (one.get(timeout=60) for one in imports)]
    print("imports at once:", most_at_once(spans))
    assert most_at_once(spans) <= 2
    print(report.get(timeout=60))

    service.touch()
    results = [one.get(timeout=60) for one in pushes]
    print("once the service was back:", results)
    assert results == ["pushed"] * 6


if __name__ == "__main__":
    import tempfile

    from _worker import worker_beside

    with tempfile.TemporaryDirectory() as directory, worker_beside(__file__, "-c", "4"), app:
        main(Path(directory) / "service")
    sys.stdout.flush()
