"""Celery, tuned: gossip, mingle, heartbeat and events off, a large prefetch, msgpack-free JSON.

BENCH_STYLE=early acknowledges early on classic queues, the default and the fastest; =late is what
compares with taskq: acks_late, reject_on_worker_lost, a quorum queue, publisher confirms.
"""

import os
import time
from typing import Any

from celery import Celery
from common import BROKER, IO_S, MINUTE_S, RESULTS, Failed, Side, counter, main, note
from kombu import Queue

LATE = os.environ.get("BENCH_STYLE") == "late"

app = Celery("bench", broker=BROKER, backend=RESULTS or None)
app.conf.update(
    worker_prefetch_multiplier=64,
    worker_send_task_events=False,
    task_ignore_result=not RESULTS,
    task_acks_late=LATE,
    task_reject_on_worker_lost=LATE,
    task_default_queue="bench",
    broker_connection_retry_on_startup=True,
    worker_detect_quorum_queues=LATE,
    broker_transport_options={"confirm_publish": True} if LATE else {},
    task_queues=[
        Queue("bench", routing_key="bench", queue_arguments={"x-queue-type": "quorum"})
        if LATE
        else Queue("bench", routing_key="bench")
    ],
)


@app.task(name="noop")
def noop(data: str = "") -> None:
    counter.add()


@app.task(name="echo")
def echo(number: int) -> int:
    counter.add()
    return number


@app.task(name="fail_once", bind=True)
def fail_once(self: Any) -> None:
    counter.add()
    if not self.request.retries:
        raise self.retry(exc=Failed(), countdown=0)


@app.task(name="io")
def io() -> None:
    time.sleep(IO_S)
    counter.add()


@app.task(name="waited")
def waited(since_s: float) -> None:
    note(time.time() - since_s)
    counter.add()


@app.task(name="minute")
def minute() -> None:
    time.sleep(MINUTE_S)


def bulk(task: str, calls: list[Any]) -> None:
    with app.producer_pool.acquire(block=True) as producer:
        for args in calls:
            app.tasks[task].apply_async(args, producer=producer)


def single(_number: int) -> object:
    return noop.delay()


def round_trip(number: int) -> object:
    value = echo.delay(number).get(timeout=30)
    assert value == number
    return value


def later(task: str, args: tuple[Any, ...], delay_s: float) -> object:
    return app.tasks[task].apply_async(args, countdown=delay_s)


if __name__ == "__main__":
    main(Side(bulk, single, round_trip, later))
