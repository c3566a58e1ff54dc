"""Tasks that are cancelled while they run, each listening in another way; and silent ones."""

import asyncio
import hashlib
import re
import time
from pathlib import Path

from work_app import AT_ONCE, app, note

from taskq.errors import TaskCancelled

__all__ = ["app"]


@app.task(name="listens", bind=True)
def listens(self):
    """Ask again and again whether to go on."""
    note(self)
    try:
        while True:
            time.sleep(0.02)
            self.checkpoint()
    except TaskCancelled:
        note(self, "told")
        raise


@app.task(name="alistens", bind=True)
async def alistens(self):
    """Wait for something that never comes."""
    note(self)
    try:
        await asyncio.sleep(600)
    except asyncio.CancelledError:
        note(self, "told")
        raise


@app.task(name="deaf", bind=True)
def deaf(self):
    """Never ask, but run in the interpreter."""
    note(self)
    try:
        while True:
            time.sleep(0.02)
    except TaskCancelled:
        note(self, "forced")
        raise


@app.task(name="adeaf", bind=True)
async def adeaf(self):
    """Take no cancel for an answer."""
    note(self)
    while True:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            note(self, "ignored")


@app.task(name="finishes", bind=True)
def finishes(self, value, path):
    """Return a value although it was cancelled."""
    note(self)
    while not self.request.run.cancelled:
        time.sleep(0.02)
    return value


@app.task(name="silent", bind=True, max_retries=1, retry=AT_ONCE, heartbeat_timeout_s=1)
def silent(self):
    note(self)
    time.sleep(600)


@app.task(name="asilent", bind=True, max_retries=0, heartbeat_timeout_s=1)
async def asilent(self):
    note(self)
    await asyncio.sleep(600)


@app.task(name="lively", bind=True, max_retries=0, heartbeat_timeout_s=3)
def lively(self, beats):
    for _ in range(beats):
        time.sleep(0.2)
        self.heartbeat()
    return "alive"


@app.task(name="alively", bind=True, max_retries=0, heartbeat_timeout_s=3)
async def alively(self, beats):
    for _ in range(beats):
        await asyncio.sleep(0.2)
        self.heartbeat()
    return "alive"


# --- tasks that nothing inside could stop


@app.task(name="aspins", bind=True, max_retries=0, time_limit=1)
async def aspins(self):
    note(self)
    while True:
        pass


@app.task(name="backtracks", bind=True, max_retries=0, time_limit=1)
def backtracks(self):
    note(self)
    re.match(r"(a|aa)*c", "a" * 60 + "b")


@app.task(name="hashes", bind=True, max_retries=0, soft_time_limit=0.3, time_limit=1)
def hashes(self):
    note(self)
    hashlib.pbkdf2_hmac("sha256", b"password", b"salt", 2**31 - 1)


@app.task(name="nap_again", bind=True, max_retries=3, retry=AT_ONCE)
def nap_again(self, sleep_s):
    note(self)
    time.sleep(sleep_s)
    return "well"


@app.task(name="anap_again", bind=True, max_retries=3, retry=AT_ONCE)
async def anap_again(self, sleep_s):
    note(self)
    await asyncio.sleep(sleep_s)
    return "well"


@app.task(name="wait_for_file", bind=True, max_retries=0)
def wait_for_file(self, path):
    """Return once a file is there."""
    note(self)
    deadline = time.monotonic() + 90
    while not Path(path).exists():
        if time.monotonic() > deadline:
            raise TimeoutError(path)
        time.sleep(0.02)
    return "done"
