"""taskq: a distributed task queue. Nothing is lost, and the claim is tested.

::

    from taskq import TaskQ

    app = TaskQ("shop")

    @app.task
    def add(x, y):
        return x + y

    print(add.delay(2, 3).get(timeout=10))

Run `taskq worker -A module:app` beside it.
"""

from taskq._version import __version__
from taskq.app import TaskQ
from taskq.canvas import Chain, Signature, chain
from taskq.errors import (
    AlreadyQueued,
    BrokerError,
    BrokerUnavailable,
    ConfigError,
    Control,
    DecodeError,
    EncodeError,
    Ignore,
    KeyExpressionFailed,
    PublishError,
    Reject,
    RemoteError,
    ResultError,
    ResultsDisabled,
    ResultsUnavailable,
    ResultTimeout,
    Retry,
    ShardsChanged,
    SoftTimeLimitExceeded,
    TaskCancelled,
    TaskExpired,
    TaskFailed,
    TaskqError,
    TimeLimitExceeded,
    TopologyMismatch,
    WorkerLost,
)
from taskq.flow.spec import CircuitBreaker, RetryBudget
from taskq.middleware import Middleware
from taskq.queues import Queue
from taskq.request import Request
from taskq.result import AsyncResult
from taskq.retry import RetryPolicy
from taskq.schedules import crontab, every, once
from taskq.shared import current_app, task
from taskq.task import AsyncTask, Task

__all__ = [
    "AlreadyQueued",
    "AsyncResult",
    "AsyncTask",
    "BrokerError",
    "BrokerUnavailable",
    "Chain",
    "CircuitBreaker",
    "ConfigError",
    "Control",
    "DecodeError",
    "EncodeError",
    "Ignore",
    "KeyExpressionFailed",
    "Middleware",
    "PublishError",
    "Queue",
    "Reject",
    "RemoteError",
    "Request",
    "ResultError",
    "ResultTimeout",
    "ResultsDisabled",
    "ResultsUnavailable",
    "Retry",
    "RetryBudget",
    "RetryPolicy",
    "ShardsChanged",
    "Signature",
    "SoftTimeLimitExceeded",
    "Task",
    "TaskCancelled",
    "TaskExpired",
    "TaskFailed",
    "TaskQ",
    "TaskqError",
    "TimeLimitExceeded",
    "TopologyMismatch",
    "WorkerLost",
    "__version__",
    "chain",
    "crontab",
    "current_app",
    "every",
    "once",
    "task",
]
