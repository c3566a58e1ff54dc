"""What a running task can do about its own run: say that it is alive, and ask whether to stop."""

from taskq.errors import TaskCancelled
from taskq.request import current


class Steering:
    """The methods of a task that concern the run at hand; outside of a worker they do nothing."""

    def heartbeat(self) -> None:
        """Say that the task makes progress; see `heartbeat_timeout_s`.

        To be called from the task's own thread or coroutine; it costs about a microsecond.
        """
        request = current.get()
        if request is not None and request.run is not None:
            request.run.beat()

    def checkpoint(self) -> None:
        """End the task here if it was cancelled; it also counts as a heartbeat.

        Raises:
            TaskCancelled: If it was. Let it pass after putting things in order.
        """
        request = current.get()
        if request is None or request.run is None:
            return
        run = request.run
        run.beat()
        if run.tag in run.cancelled:
            raise TaskCancelled(f"task {request.id} was cancelled")
