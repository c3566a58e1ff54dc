"""For tests of applications: a worker inside the test's own process.

::

    app = TaskQ("test", broker="memory://", results="memory://")

    with running_worker(app):
        assert add.delay(2, 3).get(timeout=5) == 5
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from taskq.app import TaskQ
from taskq.config import WorkerSettings
from taskq.worker.worker import LocalWorker


@contextmanager
def running_worker(
    app: TaskQ, *, queues: Sequence[str] = (), burst: bool = False, grace_s: float = 5.0
) -> Iterator[LocalWorker]:
    """Run a worker on threads of this process while the block lasts.

    It uses the app's own connections, so it works with memory://. Tasks run one at a time.

    Args:
        app: The app.
        queues: Queues to consume; those of the app's tasks by default.
        burst: Whether it ends by itself when the queues are empty; the block's end waits for it.
        grace_s: How long a running task may finish at the end of the block, in seconds.
    """
    settings = WorkerSettings(pool="solo", queues=tuple(queues), burst=burst, grace_s=grace_s)
    worker = LocalWorker(app, settings, share=True)
    worker.start()
    thread = threading.Thread(target=worker.serve, name="taskq-solo", daemon=True)
    thread.start()
    try:
        yield worker
    finally:
        if not burst:
            worker.stop()
        thread.join()
