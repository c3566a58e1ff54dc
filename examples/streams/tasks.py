"""The tasks whose life the stream watches, and the one that it sends."""

import random
import time

from taskq import TaskQ

# Durable: a worker that is killed loses no event of what it did.
app = TaskQ("streams", default_queue="streams", events="durable", result_ttl_s=3600)


class CardRefused(Exception):
    """The bank says no."""


@app.task(name="streams.charge", max_retries=0)
def charge(order: int) -> int:
    """Fail for every third order."""
    time.sleep(random.uniform(0.001, 0.005))
    if order % 3 == 0:
        raise CardRefused(f"order {order}")
    return order


@app.task(name="streams.resize", max_retries=0)
def resize(picture: int) -> int:
    """Take a while, some longer than others."""
    time.sleep(min(0.1, random.lognormvariate(-5, 0.7)))
    return picture


@app.task(name="streams.alert", idempotency_key="key", idempotency_ttl=86_400)
def alert(key: str, task: str, rate: float) -> str:
    """Tell someone, once for each task and window, also when the stream says it again."""
    return f"{task}: {rate:.0%} fail ({key})"
