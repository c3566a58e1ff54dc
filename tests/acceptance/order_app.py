"""The tasks of `work_app`, and those that show in which order things start."""

import os
import time

from work_app import app, note

from taskq import RetryPolicy

__all__ = ["app"]


@app.task(name="wait_for", bind=True)
def wait_for(self, path):
    note(self)
    end = time.monotonic() + 120
    while not os.path.exists(path) and time.monotonic() < end:
        time.sleep(0.01)


@app.task(name="retry_once", bind=True, retry=RetryPolicy(base_s=1, jitter="none"))
def retry_once(self, word):
    note(self, word)
    if not self.request.retries:
        raise ConnectionError("once")
