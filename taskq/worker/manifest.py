"""What the hub knows of an app without importing it: settings and the tasks' declarations.

The process that imports the app sends this over once; no user code ever runs in the hub.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

from taskq.app import TaskQ
from taskq.brokers.base import Broker
from taskq.brokers.shapes import QueueShape
from taskq.config import Settings
from taskq.errors import TimeLimitExceeded, WorkerLost
from taskq.retry import Jitter, RetryPolicy
from taskq.spec import TaskSpec
from taskq.topics import Binding


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """A task's declaration as plain data.

    Attributes:
        name: Registered name.
        queue: Queue it is sent to.
        max_retries: Retries after the first attempt.
        backoff: The retry policy's (base_s, factor, cap_s, jitter).
        max_age_s: Give up when the first failure lies further back; None for never.
        retry_lost: Whether the policy retries a lost worker.
        retry_timeout: Whether it retries a hard time limit.
        time_limit_s: Hard limit; None for none.
        soft_time_limit_s: Soft limit; None for none.
        heartbeat_timeout_s: Longest time without a heartbeat; None for no limit.
        dead_letter: Whether a final failure leaves a dead letter.
        keep_value: Whether the value is kept.
        result_ttl_s: How long a success is kept.
        failure_ttl_s: How long a failure is kept.
        flow: Its flow control (`FlowSpec.to_wire`), or None.
    """

    name: str
    queue: str
    max_retries: int = 3
    backoff: tuple[float, float, float, Jitter] = (1, 2, 600, "full")
    max_age_s: float | None = None
    retry_lost: bool = True
    retry_timeout: bool = True
    time_limit_s: float | None = None
    soft_time_limit_s: float | None = None
    heartbeat_timeout_s: float | None = None
    dead_letter: bool = True
    keep_value: bool = True
    result_ttl_s: int = 86400
    failure_ttl_s: int = 7 * 86400
    flow: Mapping[str, Any] | None = None

    def delay_s(self, attempt: int) -> float:
        """Return the wait after the given failed attempt (from 1), in seconds."""
        return _policy(*self.backoff).delay_s(attempt)


@lru_cache(maxsize=256)
def _policy(base_s: float, factor: float, cap_s: float, jitter: Jitter) -> RetryPolicy:
    """Return a policy; its values were checked when the task was declared."""
    return RetryPolicy(base_s, factor, cap_s, jitter)


def task_info(spec: TaskSpec, settings: Settings, route: str = "") -> TaskInfo:
    """Return a task's declaration with the app's defaults filled in.

    Args:
        spec: The task's options.
        settings: The app's.
        route: Queue that the app's routes give it, or empty.
    """
    retry = spec.retry
    return TaskInfo(
        name=spec.name,
        queue=spec.queue or route or settings.default_queue,
        max_retries=settings.max_retries if spec.max_retries is None else spec.max_retries,
        backoff=(retry.base_s, retry.factor, retry.cap_s, retry.jitter),
        max_age_s=retry.max_age_s,
        retry_lost=retry.retries(WorkerLost()),
        retry_timeout=retry.retries(TimeLimitExceeded()),
        time_limit_s=spec.time_limit,
        soft_time_limit_s=spec.soft_time_limit,
        heartbeat_timeout_s=spec.heartbeat_timeout_s,
        dead_letter=spec.dead_letter,
        keep_value=not spec.ignore_result,
        result_ttl_s=settings.result_ttl_s if spec.result_ttl is None else spec.result_ttl,
        failure_ttl_s=settings.failure_ttl_s,
        flow=None if spec.flow is None else spec.flow.to_wire(),
    )


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is known of an app.

    Attributes:
        app: Its name.
        settings: Its settings.
        tasks: Declarations by task name.
        tells_dead: Whether somebody listens for dead letters.
        bindings: What subscribers' queues get.
        shapes: Queues that differ from the usual.
    """

    app: str
    settings: Settings
    tasks: Mapping[str, TaskInfo]
    tells_dead: bool = False
    bindings: tuple[Binding, ...] = ()
    shapes: tuple[QueueShape, ...] = ()

    def consumed(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return the queues to take from for these names: a sharded one is many."""
        shapes = {shape.name: shape for shape in self.shapes}
        found: dict[str, None] = {}
        for name in names:
            found.update(dict.fromkeys(shapes[name].names() if name in shapes else (name,)))
        return tuple(found)

    def queues(self) -> tuple[str, ...]:
        """Return the queues to consume by default: `default`'s, then those of the tasks."""
        found = dict.fromkeys([self.settings.default_queue])
        found.update(dict.fromkeys(sorted(info.queue for info in self.tasks.values())))
        return tuple(found)

    def of_worker(self, worker: str, broker: Broker) -> "Manifest":
        """Return the manifest as one worker has it, and tell the broker what subscribers get.

        Queues of broadcasts bear the worker's name.
        """
        bindings = tuple(binding.of_worker(worker) for binding in self.bindings)
        broker.bind(bindings)
        tasks = dict(self.tasks)
        for binding in bindings:
            tasks[binding.task] = replace(tasks[binding.task], queue=binding.queue)
        return replace(self, tasks=tasks, bindings=bindings)

    def to_wire(self) -> dict[str, Any]:
        """Return plain data for msgpack."""
        return {
            "bindings": [binding.to_list() for binding in self.bindings],
            "app": self.app,
            "settings": asdict(self.settings),
            "tasks": {name: asdict(info) for name, info in self.tasks.items()},
            "tells_dead": self.tells_dead,
            "shapes": [asdict(shape) for shape in self.shapes],
        }

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> "Manifest":
        """Read `to_wire`'s form."""
        settings: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in wire["settings"].items()
        }
        tasks = {
            name: TaskInfo(**{**info, "backoff": tuple(info["backoff"])})
            for name, info in wire["tasks"].items()
        }
        bindings = tuple(Binding(*parts) for parts in wire["bindings"])
        shapes = tuple(QueueShape(**shape) for shape in wire.get("shapes", ()))
        return cls(wire["app"], Settings(**settings), tasks, wire["tells_dead"], bindings, shapes)


def make_manifest(app: TaskQ) -> Manifest:
    """Return the manifest of an app."""
    tasks = {
        name: task_info(task.spec, app.settings, app.routes.queue_of(name))
        for name, task in app.tasks.items()
    }
    listens = app.has_listeners("dead_letter")
    return Manifest(app.name, app.settings, tasks, listens, app.bindings, app.queues.shapes)
