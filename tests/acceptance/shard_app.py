"""An app with a sharded queue; broker and results come from the environment."""

import os
import time

from work_app import note

from taskq import Queue, TaskQ

app = TaskQ(
    "shards",
    queues=[Queue("orders", shards=int(os.environ.get("SHARDS", "4")), shard_key="args[0]")],
)


@app.task(name="step", bind=True, queue="orders", max_retries=10)
def step(self, key, number, sleep_s=0.02):
    note(self, f"{key}:{number}")
    time.sleep(sleep_s)
