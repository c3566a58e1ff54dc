"""The app of the tests in which workers die; broker and results come from the environment."""

import os
import signal
import time
from pathlib import Path

from taskq import RetryPolicy, TaskQ

app = TaskQ("crash")

AT_ONCE = RetryPolicy(base_s=0)


def true_time():
    """Return the machine's time, also where a test has set this process's clock."""
    return time.clock_gettime(time.CLOCK_REALTIME)


def note(self, word=""):
    """Append this run's line to the file WORK_LOG, in one write."""
    request = self.request
    line = f"{request.id} {os.getpid()} {request.retries + 1} {true_time():.3f} {word}\n"
    fd = os.open(os.environ["WORK_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)


def hub_pid():
    """Return the pid of the worker's hub: the parent of the template that forked this executor."""
    template = Path(f"/proc/{os.getppid()}/stat").read_text()
    return int(template.rpartition(")")[2].split()[1])


def runs_of(self):
    """Return how many runs of this task there were before."""
    path = Path(os.environ["WORK_LOG"])
    lines = path.read_text().splitlines() if path.exists() else []
    return sum(1 for line in lines if line.startswith(self.request.id))


def die_with_hub():
    os.kill(hub_pid(), signal.SIGKILL)
    time.sleep(30)


@app.task(name="kill_hub", bind=True, max_retries=2, retry=AT_ONCE)
def kill_hub(self, times=99):
    """Kill the hub, for so many runs."""
    done = runs_of(self)
    note(self)
    if done < times:
        die_with_hub()
    return self.request.retries


@app.task(name="kill_hub_once", bind=True, max_retries=0, retry=AT_ONCE)
def kill_hub_once(self, after_s=0.0):
    note(self)
    time.sleep(after_s)
    die_with_hub()


@app.task(name="fail_always", bind=True, max_retries=1, retry=AT_ONCE)
def fail_always(self):
    note(self)
    raise ValueError("always")


@app.task(name="fail_first", bind=True, max_retries=3, retry=AT_ONCE)
def fail_first(self):
    note(self)
    if not self.request.retries:
        raise ValueError("at first")


@app.task(name="hold", bind=True, max_retries=3, retry=AT_ONCE)
def hold(self, sleeps_s, fail_first=False):
    """Sleep for as long as this run's number says, and tell which process it was."""
    number = runs_of(self)
    note(self)
    time.sleep(sleeps_s[min(number, len(sleeps_s) - 1)])
    if fail_first and not number:
        raise ValueError("the first run fails")
    return os.getpid()


@app.task(name="step", bind=True)
def step(self, sleep_s=0.0, value=None):
    note(self)
    time.sleep(sleep_s)
    return value


@app.task(name="sturdy", bind=True, max_retries=100, retry=AT_ONCE)
def sturdy(self, sleep_s=0.0):
    note(self)
    time.sleep(sleep_s)
