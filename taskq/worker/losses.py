"""What it costs a task when what ran it is gone: killed, crashed, or stopped at its hard limit."""

from taskq import outcome
from taskq.errors import RemoteError
from taskq.worker import endings
from taskq.worker.endings import Case, Ending


def worker_lost(case: Case, detail: str) -> Ending:
    """End a run whose process died: one attempt, and another if the policy has one left.

    Args:
        case: The delivery.
        detail: What became of the process, for the record and the dead letter.
    """
    error = RemoteError("taskq.errors", "WorkerLost", detail)
    retryable = case.info is not None and case.info.retry_lost
    return endings.failed(case, error, retryable, us=1, reason="worker_lost")


def hub_lost(case: Case) -> Ending:
    """Give up a task whose workers died with it, attempt after attempt."""
    spent = case.envelope.spent + 1
    error = RemoteError(
        "taskq.errors", "WorkerLost", f"the whole worker died while it ran this, {spent} times"
    )
    return endings.final(case, outcome.FAILURE, error, reason="worker_lost")


def timed_out(case: Case, why: str, ran_s: float) -> Ending:
    """End a run that was stopped at a limit.

    Args:
        case: The delivery.
        why: Which limit, for the record and the dead letter.
        ran_s: For how long it ran, in seconds.
    """
    error = RemoteError("taskq.errors", "TimeLimitExceeded", why)
    retryable = case.info is not None and case.info.retry_timeout
    return endings.failed(case, error, retryable, us=max(1, int(ran_s * 1e6)))
