"""Dramatiq, tuned: a prefetch of 500 (dramatiq_queue_prefetch), one thread or as many as asked."""

import os
import time
from typing import Any

os.environ.setdefault("dramatiq_queue_prefetch", "500")

import dramatiq
from common import BROKER, IO_S, MINUTE_S, RESULTS, Failed, Side, counter, main, note
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.middleware import CurrentMessage
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

# pika reads the trailing // as an empty vhost.
broker = RabbitmqBroker(url=BROKER.removesuffix("//"), confirm_delivery=False)
broker.add_middleware(CurrentMessage())
if RESULTS:
    broker.add_middleware(Results(backend=RedisBackend(url=RESULTS), store_results=True))
dramatiq.set_broker(broker)


@dramatiq.actor(queue_name="bench")
def noop(data: str = "") -> None:
    counter.add()


@dramatiq.actor(queue_name="bench")
def echo(number: int) -> int:
    counter.add()
    return number


@dramatiq.actor(queue_name="bench", min_backoff=1, max_backoff=1)
def fail_once() -> None:
    counter.add()
    message = CurrentMessage.get_current_message()
    if message is not None and not message.options.get("retries"):
        raise Failed


@dramatiq.actor(queue_name="bench")
def io() -> None:
    time.sleep(IO_S)
    counter.add()


@dramatiq.actor(queue_name="bench")
def waited(since_s: float) -> None:
    note(time.time() - since_s)
    counter.add()


@dramatiq.actor(queue_name="bench")
def minute() -> None:
    time.sleep(MINUTE_S)


ACTORS = {
    "noop": noop,
    "echo": echo,
    "fail_once": fail_once,
    "io": io,
    "waited": waited,
    "minute": minute,
}


def bulk(task: str, calls: list[Any]) -> None:
    actor = ACTORS[task]
    for args in calls:
        actor.send(*args)


def single(_number: int) -> object:
    return noop.send()


def round_trip(number: int) -> object:
    value = echo.send(number).get_result(block=True, timeout=30_000)
    assert value == number
    return value


def later(task: str, args: tuple[Any, ...], delay_s: float) -> object:
    return ACTORS[task].send_with_options(args=args, delay=round(delay_s * 1000))


if __name__ == "__main__":
    main(Side(bulk, single, round_trip, later))
