"""The systems that are compared: how each is started, and which cases it has."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

Argv = Callable[[int, int], Sequence[str]]
"""From (processes, tasks at once in each process) to the worker's command after the interpreter."""


@dataclass(frozen=True)
class System:
    """One system in one setting.

    Attributes:
        name: As in the table.
        side: File below `sides/`.
        broker: `rabbitmq`, `redis` or `sqlite`.
        results: `redis` or `sqlite`; where results go when a case wants them.
        worker: The worker's command.
        env: Further environment of worker and senders.
        own: Whether it runs in this checkout's environment, not in that of the peers.
        coroutines: Whether it has a worker for `async def` tasks; its command.
        safe: Whether a send is confirmed and a lost worker loses nothing.
        delays: Whether tasks can be sent for later.
        sends_from_coroutines: Whether tasks can be sent from coroutines.
    """

    name: str
    side: str
    broker: str
    results: str
    worker: Argv
    env: dict[str, str] = field(default_factory=dict)
    own: bool = False
    coroutines: Argv | None = None
    safe: bool = False
    delays: bool = True
    sends_from_coroutines: bool = False


def _taskq(processes: int, at_once: int) -> Sequence[str]:
    pool = ["-P", "thread", "--executors", str(processes)] if at_once > 1 else []
    count = str(processes * at_once)
    return ["-m", "taskq", "worker", "-A", "taskq_side:app", "-l", "warning", "-c", count, *pool]


def _taskq_coroutines(processes: int, at_once: int) -> Sequence[str]:
    return [*_taskq(processes, 1)[:-1], str(processes * at_once), "-P", "asyncio"]


def _celery(processes: int, at_once: int) -> Sequence[str]:
    pool = ["-P", "threads", "-c", str(at_once)] if at_once > 1 else ["-c", str(processes)]
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "ERROR"]
    return ["-m", "celery", "-A", "celery_side", "worker", *quiet, *pool]


def _dramatiq(processes: int, at_once: int) -> Sequence[str]:
    return ["-m", "dramatiq", "dramatiq_side", "-p", str(processes), "-t", str(at_once)]


def _taskiq(processes: int, at_once: int) -> Sequence[str]:
    most = ["--max-async-tasks", str(max(100, at_once)), "--max-threadpool-threads", str(at_once)]
    return ["-m", "taskiq", "worker", "taskiq_side:broker", "--workers", str(processes), *most]


def _huey(processes: int, at_once: int) -> Sequence[str]:
    kind = ["-k", "thread", "-w", str(at_once)] if at_once > 1 else ["-k", "process"]
    count = [] if at_once > 1 else ["-w", str(processes)]
    quiet = ["-q", "-n", "-d", "0.005", "-m", "0.005"]
    return ["-m", "huey.bin.huey_consumer", "huey_side.huey", *kind, *count, *quiet]


SYSTEMS = (
    System(
        "taskq",
        "taskq_side.py",
        "rabbitmq",
        "redis",
        _taskq,
        own=True,
        coroutines=_taskq_coroutines,
        safe=True,
        sends_from_coroutines=True,
    ),
    System(
        "taskq SQLite",
        "taskq_side.py",
        "sqlite",
        "sqlite",
        _taskq,
        own=True,
        coroutines=_taskq_coroutines,
        safe=True,
        sends_from_coroutines=True,
    ),
    System("Celery early ack", "celery_side.py", "rabbitmq", "redis", _celery),
    System(
        "Celery late ack, quorum",
        "celery_side.py",
        "rabbitmq",
        "redis",
        _celery,
        {"BENCH_STYLE": "late"},
        safe=True,
    ),
    System("Dramatiq", "dramatiq_side.py", "rabbitmq", "redis", _dramatiq),
    System(
        "TaskIQ aio-pika",
        "taskiq_side.py",
        "rabbitmq",
        "redis",
        _taskiq,
        coroutines=_taskiq,
        delays=False,
        sends_from_coroutines=True,
    ),
    System("Huey Redis", "huey_side.py", "redis", "redis", _huey),
    System(
        "Huey SQLite",
        "huey_side.py",
        "sqlite",
        "sqlite",
        _huey,
        {"BENCH_STYLE": "sqlite"},
    ),
)
