"""The app of the flow control tests; runs append `id key word time` to the file WORK_LOG."""

import contextlib
import os
import signal
import sqlite3
import time
from pathlib import Path

from taskq import CircuitBreaker, Queue, RetryBudget, RetryPolicy, TaskQ

app = TaskQ("limits", queues=[Queue("narrow", max_length=5)])
AT_ONCE = RetryPolicy(base_s=0)


def note(self, key, word):
    """Append one line in one write."""
    line = f"{self.request.id} {key} {word} {time.time():.4f}\n"
    fd = os.open(os.environ["WORK_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)


@app.task(name="ten", bind=True, rate_limit="10/s")
def ten(self, number):
    note(self, "all", "start")


@app.task(name="ten_each", bind=True, rate_limit="10/s", rate_limit_key="kwargs['who']")
def ten_each(self, *, who):
    note(self, who, "start")


@app.task(name="three", bind=True, max_concurrency=3, concurrency_key="tenant")
def three(self, tenant, sleep_s=0.05):
    note(self, tenant, "start")
    time.sleep(sleep_s)
    note(self, tenant, "end")


@app.task(name="turns", bind=True, max_concurrency=1, concurrency_key="tenant")
def turns(self, tenant, sleep_s=0.05):
    note(self, tenant, "start")
    time.sleep(sleep_s)
    note(self, tenant, "end")


@app.task(name="picky", bind=True, max_concurrency=1, concurrency_key="order['id']")
def picky(self, order):
    note(self, "all", "start")


@app.task(name="one", bind=True, max_concurrency=1)
def one(self, flag):
    """Hang when the flag's file is not there yet, and make it."""
    hang = bool(flag) and not Path(flag).exists()
    if hang:
        # Before the line that the test waits for: a kill right after it must find the flag there.
        Path(flag).touch()
    note(self, "all", "start")
    if hang:
        time.sleep(600)
    note(self, "all", "end")


@app.task(name="until_done", bind=True, unique="until_done", unique_key="args[0]")
def until_done(self, key, sleep_s=0.0):
    note(self, key, "start")
    time.sleep(sleep_s)


@app.task(name="until_start", bind=True, unique="until_start", on_duplicate="raise")
def until_start(self, key, flag=""):
    note(self, key, "start")
    while flag and not Path(flag).exists():
        time.sleep(0.02)


@app.task(name="window", bind=True, unique=3600, unique_key="key")
def window(self, key):
    note(self, key, "start")


@app.task(name="debounced", bind=True, debounce=3.0, unique_key="key")
def debounced(self, key, value):
    note(self, key, str(value))
    return value


@app.task(
    name="pay",
    bind=True,
    idempotency_key="kwargs['order']",
    max_retries=0,
    dead_letter=False,
)
def pay(self, *, order, fails=False):
    note(self, order, "start")
    if fails:
        raise ValueError("not this time")
    return f"paid by {self.request.id}"


@app.task(name="charge", bind=True, max_retries=3, retry=AT_ONCE)
def charge(self, path, amount):
    """Book once, and die before anybody learns of it."""
    note(self, "all", "start")
    with contextlib.closing(sqlite3.connect(path, timeout=60)) as db, db:
        if self.once(db):
            db.execute("CREATE TABLE IF NOT EXISTS bookings (amount INTEGER)")
            db.execute("INSERT INTO bookings VALUES (?)", (amount,))
    if self.request.retries < 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return "charged"


@app.task(name="brittle", bind=True, unique="until_done", unique_key="key", max_retries=0)
def brittle(self, key, flag):
    note(self, key, "start")
    if not Path(flag).exists():
        raise ValueError("not yet")
    return "done"


@app.task(name="narrow", bind=True, queue="narrow", max_retries=2, retry=AT_ONCE)
def narrow(self, number):
    note(self, str(number), "start")
    time.sleep(0.05)
    if not self.request.retries:
        raise ConnectionError("the first time fails")


@app.task(name="plain", bind=True)
def plain(self, key):
    note(self, key, "start")
    return key


@app.task(
    name="fragile",
    bind=True,
    max_retries=20,
    retry=AT_ONCE,
    circuit_breaker=CircuitBreaker(failures=3, window_s=60, reset_s=2, on=(ConnectionError,)),
)
def fragile(self, flag):
    note(self, "all", "start")
    if not Path(flag).exists():
        raise ConnectionError("the service is away")
    return "answered"


@app.task(
    name="stormy",
    bind=True,
    max_retries=3,
    retry=AT_ONCE,
    dead_letter=False,
    retry_budget=RetryBudget(share=0.1, min_per_s=2, burst=3),
)
def stormy(self):
    note(self, "all", "retry" if self.request.retries else "first")
    raise ConnectionError("away")
