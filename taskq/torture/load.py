"""The load: tasks of each kind, sent on a thread of its own, and which of them were confirmed."""

import random
import threading
import time
from typing import Any, Final
from uuid import UUID

from taskq.app import TaskQ
from taskq.canvas import Chain, Signature
from taskq.errors import PublishError
from taskq.torture.tasks import fail, follow, work

_BATCH: Final = 10
_NAP_S: Final = 0.02
_LATER_S: Final = (0.3, 2.5)


class Load:
    """Sends until it is stopped.

    Attributes:
        confirmed: Moment before which each confirmed task may not start, in epoch ms, by id; 0 for
            any.
        doubtful: Ids of tasks whose send raised; they may run or not.
        doomed: Ids of tasks that are to end as dead letters.
        failures: How many sends raised, by reason.
        slowest_s: The longest that one send took, in seconds.
        limit_s: What it may take at most: the app's `publish_timeout_s`.
    """

    def __init__(self, app: TaskQ, rate: float, rng: random.Random) -> None:
        """Prepare.

        Args:
            app: Sends with it; the only user of `rng` while it runs is this load.
            rate: Tasks a second.
            rng: Decides about kinds and delays.
        """
        self.confirmed: dict[str, int] = {}
        self.doubtful: set[str] = set()
        self.doomed: set[str] = set()
        self.failures: dict[str, int] = {}
        self.slowest_s = 0.0
        self.limit_s = app.settings.publish_timeout_s
        self._app = app
        self._rate = rate
        self._rng = random.Random(rng.random())
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="torture-load", daemon=True)
        self._trouble: BaseException | None = None

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def stop(self) -> None:
        """Send no more, and wait for the send under way.

        Raises:
            BaseException: What the load failed with, other than a `PublishError`.
        """
        self._end.set()
        self._thread.join(self.limit_s + 30)
        if self._thread.is_alive():
            raise PublishError("", "timeout", "a send did not end: this is a fault of taskq")
        if self._trouble is not None:
            raise self._trouble

    def _run(self) -> None:
        try:
            while not self._end.is_set():
                began_s = time.monotonic()
                self.send(_BATCH)
                self._end.wait(max(0.0, began_s + _BATCH / self._rate - time.monotonic()))
        # Raised again by `stop`, on the thread of who started this.
        except BaseException as error:
            self._trouble = error

    def send(self, count: int) -> None:
        """Send so many tasks, and note which were confirmed."""
        calls: list[Signature[Any] | Chain] = []
        due: dict[str, int] = {}
        owners: dict[str, str] = {}
        for _ in range(count):
            call, ids, due_ms = self._call()
            calls.append(call)
            due.update(dict.fromkeys(ids, 0))
            due[ids[0]] = due_ms
            owners.update(dict.fromkeys(ids, ids[0]))
        began_s = time.monotonic()
        failed: set[str] = set()
        try:
            self._app.send(calls)
        except PublishError as error:
            failed = set(error.failed_ids)
            self.failures[error.reason] = self.failures.get(error.reason, 0) + len(failed)
        self.slowest_s = max(self.slowest_s, time.monotonic() - began_s)
        for task_id, due_ms in due.items():
            if task_id in failed or owners[task_id] in failed:
                self.doubtful.add(task_id)
            else:
                self.confirmed[task_id] = due_ms

    def _call(self) -> tuple[Signature[Any] | Chain, list[str], int]:
        """Return one call, the ids of its steps, and when it is due (0: at once)."""
        rng = self._rng
        ids = [str(UUID(int=rng.getrandbits(128), version=4)) for _ in range(2)]
        kind = rng.random()
        if kind < 0.15:
            # Rounded down to the ms on the wire; what is due in 0.3 s is early at 0.2999 s.
            delay_s = rng.uniform(*_LATER_S)
            due_ms = int((time.time() + delay_s) * 1000) - 1
            return work.s().set(task_id=ids[0], countdown=delay_s), ids[:1], due_ms
        if kind < 0.2:
            self.doomed.add(ids[0])
            return fail.s().set(task_id=ids[0]), ids[:1], 0
        if kind < 0.3:
            first = work.s(_NAP_S).set(task_id=ids[0])
            return first | follow.s().set(task_id=ids[1]), ids, 0
        sleep_s = _NAP_S if kind < 0.6 else 0.0
        return work.s(sleep_s).set(task_id=ids[0]), ids[:1], 0
