"""The app that the acceptance tests' workers run; broker and results come from the environment.

Every run appends one line `id pid attempt` to the file WORK_LOG, in one write, so that executions
are counted exactly, also those of processes that are killed a moment later.
"""

import asyncio
import ctypes
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

from taskq import Ignore, Reject, RetryPolicy, SoftTimeLimitExceeded, TaskQ

app = TaskQ("work")

AT_ONCE = RetryPolicy(base_s=0)
_kept: list[bytearray] = []


def note(self, word=""):
    """Append this run's line; `word` names what else is to be told."""
    request = self.request
    line = f"{request.id} {os.getpid()} {request.retries + 1} {time.time():.3f} {word}\n"
    fd = os.open(os.environ["WORK_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)


@app.task(name="add")
def add(x, y):
    return x + y


@app.task(name="nap", bind=True)
def nap(self, sleep_s=0.0, value=None):
    note(self)
    time.sleep(sleep_s)
    return value


@app.task(name="anap", bind=True)
async def anap(self, sleep_s=0.0, value=None):
    note(self)
    await asyncio.sleep(sleep_s)
    return value


@app.task(name="nap_elsewhere", bind=True, queue="elsewhere")
def nap_elsewhere(self, sleep_s=0.0):
    note(self)
    time.sleep(sleep_s)


def _arrive(self, directory):
    (Path(directory) / self.request.id).touch()


def _arrived(directory):
    return len(list(Path(directory).iterdir()))


@app.task(name="meet", bind=True, max_retries=0)
def meet(self, directory, count):
    """Return once so many tasks run at the same time."""
    _arrive(self, directory)
    deadline = time.monotonic() + 10
    while _arrived(directory) < count:
        if time.monotonic() > deadline:
            raise TimeoutError(f"only {_arrived(directory)} of {count} ran at once")
        time.sleep(0.01)
    return os.getpid()


@app.task(name="ameet", bind=True, max_retries=0)
async def ameet(self, directory, count):
    """Return once so many coroutines run at the same time."""
    _arrive(self, directory)
    deadline = time.monotonic() + 10
    while _arrived(directory) < count:
        if time.monotonic() > deadline:
            raise TimeoutError(f"only {_arrived(directory)} of {count} ran at once")
        await asyncio.sleep(0.01)
    return os.getpid()


# --- failures


def deep_inside(text):
    raise ValueError(text)


@app.task(name="fail", bind=True, max_retries=2, retry=RetryPolicy(base_s=0.2, jitter="none"))
def fail(self, text="broken"):
    note(self)
    deep_inside(text)


@app.task(name="afail", bind=True, max_retries=0)
async def afail(self, text="broken"):
    note(self)
    deep_inside(text)


@app.task(name="fail_quietly", bind=True, max_retries=0, dead_letter=False)
def fail_quietly(self):
    note(self)
    raise ValueError("no letter")


@app.task(name="flaky", bind=True, max_retries=5, retry=AT_ONCE)
def flaky(self, failures):
    note(self)
    if self.request.retries < failures:
        raise ConnectionError(f"attempt {self.request.retries + 1}")
    return self.request.retries


@app.task(name="old", bind=True, max_retries=50, retry=RetryPolicy(base_s=0, max_age_s=0.5))
def old(self):
    note(self)
    time.sleep(0.1)
    raise ConnectionError("still away")


@app.task(name="asks_again", bind=True, max_retries=1)
def asks_again(self, countdown, times, max_retries=None):
    note(self)
    if self.request.retries < times:
        try:
            raise KeyError("why")
        except KeyError:
            raise self.retry(countdown=countdown, max_retries=max_retries) from None
    return self.request.retries


class Busy(Exception):
    retry_after = 1


@app.task(name="busy", bind=True, max_retries=1, retry=AT_ONCE)
def busy(self):
    note(self)
    if not self.request.retries:
        raise Busy("come back later")


@app.task(name="not_retried", bind=True, retry=RetryPolicy(base_s=0, dead_on=(ValueError,)))
def not_retried(self):
    note(self)
    raise ValueError("never again")


@app.task(name="reject", bind=True)
def reject(self, directory="", requeue=False):
    """Reject once; with `directory` the second delivery is accepted."""
    note(self)
    if requeue and (Path(directory) / self.request.id).exists():
        return "accepted"
    if requeue:
        (Path(directory) / self.request.id).touch()
    raise Reject("not for me", requeue=requeue)


@app.task(name="ignore", bind=True)
def ignore(self):
    note(self)
    raise Ignore


@app.task(name="unencodable", bind=True)
def unencodable(self):
    note(self)
    return object()


_BASES = {
    "SystemExit": SystemExit,
    "KeyboardInterrupt": KeyboardInterrupt,
    "GeneratorExit": GeneratorExit,
    "MemoryError": MemoryError,
    "CancelledError": asyncio.CancelledError,
    "StopIteration": StopIteration,
}


@app.task(name="raises", bind=True, max_retries=0)
def raises(self, kind):
    note(self)
    raise _BASES[kind]


@app.task(name="araises", bind=True, max_retries=0)
async def araises(self, kind):
    note(self)
    raise _BASES[kind]


# --- deaths and limits


@app.task(name="die", bind=True, max_retries=2, retry=AT_ONCE)
def die(self, how="kill", times=99, wait_s=0.0):
    note(self)
    time.sleep(wait_s)
    if self.request.retries >= times:
        return "alive"
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "exit":
        os._exit(3)
    elif how == "segfault":
        ctypes.string_at(0)
    elif how == "overflow":
        sys.setrecursionlimit(1 << 30)
        _deeper(0)
    return "not dead"


def _deeper(_):
    # Through C code: pure Python frames take no stack, so they end in MemoryError at best.
    return list(map(_deeper, [0]))


@app.task(name="grow", bind=True)
def grow(self, megabytes):
    note(self)
    _kept.append(bytearray(os.urandom(1) * (megabytes << 20)))
    time.sleep(0.05)


def _soft(self, work):
    note(self)
    try:
        work()
    except SoftTimeLimitExceeded:
        note(self, "soft")
        raise


def _spin():
    while True:
        pass


def _sleep_on():
    while True:
        time.sleep(0.01)


@app.task(name="soft_sleep", bind=True, max_retries=0, soft_time_limit=0.3)
def soft_sleep(self):
    _soft(self, _sleep_on)


@app.task(name="soft_block", bind=True, max_retries=0, soft_time_limit=0.3)
def soft_block(self):
    _soft(self, lambda: time.sleep(30))


@app.task(name="soft_spin", bind=True, max_retries=0, soft_time_limit=0.3)
def soft_spin(self):
    _soft(self, _spin)


@app.task(name="soft_async", bind=True, max_retries=0, soft_time_limit=0.3)
async def soft_async(self):
    note(self)
    try:
        await asyncio.sleep(30)
    finally:
        note(self, "soft")


@app.task(name="soft_caught", bind=True, max_retries=0, soft_time_limit=0.3)
def soft_caught(self):
    try:
        _soft(self, _sleep_on)
    except SoftTimeLimitExceeded:
        return "cleaned up"


@app.task(name="hard_sleep", bind=True, max_retries=0, time_limit=0.5)
def hard_sleep(self):
    note(self)
    time.sleep(30)


@app.task(name="hard_spin", bind=True, max_retries=1, retry=AT_ONCE, time_limit=0.5)
def hard_spin(self):
    note(self)
    _spin()


@app.task(name="hard_async", bind=True, max_retries=0, time_limit=0.5)
async def hard_async(self):
    note(self)
    await asyncio.sleep(30)


@app.task(name="hard_stubborn", bind=True, max_retries=0, time_limit=0.5)
async def hard_stubborn(self):
    """Stop for nothing."""
    note(self)
    while True:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            continue


@app.task(name="stubborn", bind=True)
def stubborn(self, sleep_s):
    """Hold the interpreter's lock in ways that only a kill ends."""
    note(self)
    end = time.monotonic() + sleep_s
    while time.monotonic() < end:
        try:
            time.sleep(0.05)
        except BaseException:
            continue


@app.task(name="threads", bind=True)
def threads(self):
    return [os.getpid(), threading.get_ident(), threading.current_thread().name]


# --- what a task sees, and chains


@app.task(name="request", bind=True)
def request_of(self, *args, **kwargs):
    request = self.request
    return {
        "id": request.id,
        "root_id": request.root_id,
        "parent_id": request.parent_id,
        "retries": request.retries,
        "queue": request.queue,
        "priority": request.priority,
        "headers": {k: v for k, v in request.headers.items() if k.startswith("x-")},
        "args": list(args),
        "kwargs": kwargs,
    }


@app.task(name="tell", bind=True)
def tell(self, word, more=""):
    note(self, f"{word}{more}")
    return word


@app.task(name="sent_at", bind=True)
def sent_at(self):
    note(self, self.request.headers["taskq-sent"])


@app.task(name="send_more", bind=True)
def send_more(self, count):
    return [add.delay(number, 1).id for number in range(count)]


@app.task(name="hold_lock", bind=True)
def hold_lock(self, seconds):
    """Hold the interpreter's lock in one C call after the other, so that no other thread runs."""
    note(self)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        # About half a second of arithmetic without a bytecode in between.
        pow(3, 1 << 21)
    return "done"


@app.task(name="until_told", bind=True)
def until_told(self):
    _soft(self, _sleep_on)


@app.task(name="remaining", bind=True)
def remaining(self):
    return self.request.remaining_s


@app.task(name="send_child", bind=True)
def send_child(self):
    return remaining.delay().id


@app.task(name="surroundings")
def surroundings():
    handlers = len(logging.getLogger("taskq").handlers)
    return [os.read(0, 1), handlers, "taskq.worker.hub" in sys.modules]
