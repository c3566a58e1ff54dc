"""What `taskq doctor` examines: environment, settings, app, broker, results store.

Each check is a line with a stable name; `CHECKS` says what it looks at and `docs/doctor.md` what
to do. A check never raises.
"""

import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, Literal

from taskq import clock, outcome
from taskq._version import __version__
from taskq.app import TaskQ
from taskq.brokers.base import DEAD_QUEUE, Check
from taskq.config import (
    Settings,
    WorkerSettings,
    build,
    nearest,
    read_environment,
    read_file,
    setting_names,
)
from taskq.errors import ConfigError, ResultsUnavailable, TaskqError
from taskq.ids import new_id
from taskq.results.base import Record, ResultStore, Write, encode_record
from taskq.worker.manifest import make_manifest

CHECKS: Final = {
    "python": "the Python version is supported, and assertions are on",
    "taskq.version": "the code that runs is the distribution that is installed",
    "taskq.name-clash": "no other distribution brings a package `taskq`",
    "settings.environment": "every `TASKQ_*` variable is a setting with a usable value",
    "settings.file": "`taskq.toml` or `[tool.taskq]` can be read and holds settings",
    "app.import": "the app that `-A` names can be imported and has tasks",
    "tasks.time-limits": "no task may run longer than RabbitMQ waits for an acknowledgement",
    "broker.reachable": "the broker answers and can be used",
    "broker.access": "user, password and virtual host are right",
    "broker.version": "the broker is new enough",
    "broker.permissions": "the user may create what taskq needs",
    "broker.dead-letters": "the queue of dead letters is there, with the right arguments",
    "broker.queue-arguments": "the work queues have taskq's arguments",
    "broker.queues": "the work queues are there, or will be made",
    "broker.alarms": "RabbitMQ takes messages: no memory or disk alarm",
    "broker.file": "the embedded file is a database of taskq",
    "broker.lock": "no other program keeps the embedded file locked",
    "broker.writable": "the embedded file can be written",
    "broker.integrity": "the embedded file is not damaged",
    "broker.wal": "the embedded file's log is in order and not too large",
    "broker.disk": "there is room for the embedded file to grow",
    "dead-letters.waiting": "no dead letters wait for somebody to look at them",
    "results.configured": "a results store is configured",
    "results.reachable": "the results store answers, and soon",
    "results.round-trip": "a record can be written, read and deleted",
    "results.eviction": "Redis evicts nothing: `maxmemory-policy` is `noeviction`",
    "results.clock": "Redis' clock and this one agree",
}
"""Name of each check to what is well when it is ok."""

CONSUMER_TIMEOUT_S: Final = 1800.0
"""RabbitMQ's default `consumer_timeout`."""
_CLASHING: Final = ("taskq", "taskq-py")
_SLOW_S: Final = 0.1
_SKEW_S: Final = 1.0
_OLDEST_PYTHON: Final = (3, 11)
_RECORD_TTL_S: Final = 60

Status = Literal["ok", "warning", "failed"]


def examine(place: str, load: Callable[[str], TaskQ]) -> Iterator[Check]:
    """Yield one check after the other; what a failed one makes pointless is left out.

    Args:
        place: Where the app is, or empty to examine settings and servers alone.
        load: Imports an app; see `taskq.loading.load_app`.
    """
    yield check_python(sys.version_info[:3], sys.flags.optimize)
    yield check_version(_installed("taskq-mq"))
    yield check_name_clash([name for name in _CLASHING if _installed(name)])
    environment = check_environment(os.environ)
    settings_file = check_file(os.environ)
    yield environment
    yield settings_file
    if "failed" in (environment.status, settings_file.status):
        return
    try:
        app = load(place) if place else TaskQ("doctor")
    except ConfigError as error:
        yield Check("app.import", "failed", str(error), "taskq worker -l debug shows the traceback")
        return
    try:
        if place:
            yield _app(app)
            yield check_time_limits(app)
        yield from check_broker(app)
        yield from check_results(app)
    finally:
        app.close()


def check_python(version: tuple[int, ...], optimize: int) -> Check:
    """Examine the interpreter: its version, and its level of `-O`."""
    shown = ".".join(map(str, version))
    if version[:2] < _OLDEST_PYTHON:
        return Check("python", "failed", f"Python {shown}", "use Python 3.11 or newer")
    if optimize:
        return Check(
            "python",
            "warning",
            f"Python {shown} with -O, which strips assertions from tasks",
            "start it without -O, and unset PYTHONOPTIMIZE",
        )
    return Check("python", "ok", f"Python {shown}, {platform.system()} {platform.machine()}")


def _installed(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def check_version(installed: str) -> Check:
    """Compare the running code with the installed distribution; empty when there is none."""
    place = os.path.dirname(os.path.abspath(__file__))
    if installed and installed != __version__:
        return Check(
            "taskq.version",
            "warning",
            f"{__version__} runs from {place}, but {installed} is installed",
            "another copy comes first on sys.path: start elsewhere, or install again",
        )
    return Check("taskq.version", "ok", f"{__version__} from {place}")


def check_name_clash(found: list[str]) -> Check:
    """Examine the names of installed distributions that bring a package `taskq` of their own."""
    if not found:
        return Check("taskq.name-clash", "ok", "no other distribution brings a package taskq")
    names = " ".join(found)
    return Check(
        "taskq.name-clash",
        "failed",
        f"{' and '.join(found)} is installed and overwrites files of taskq-mq",
        f"pip uninstall {names} taskq-mq, then pip install taskq-mq",
    )


def check_environment(environ: Mapping[str, str]) -> Check:
    """Examine the `TASKQ_*` variables: names and values."""
    name = "settings.environment"
    try:
        unknown = _unknown_variables(environ)
        if unknown:
            raise ConfigError(f"unknown: {', '.join(unknown)}")
        values = read_environment(Settings, environ)
        worker_values = read_environment(WorkerSettings, environ)
        build(Settings, [("the environment", values)])
        build(WorkerSettings, [("the environment", worker_values)])
    except ConfigError as error:
        return Check(name, "failed", str(error), "correct the variable, or unset it")
    return Check(name, "ok", f"{len(values) + len(worker_values)} settings from TASKQ_* variables")


def _unknown_variables(environ: Mapping[str, str]) -> list[str]:
    every = [*setting_names(Settings), *setting_names(WorkerSettings)]
    known = {f"TASKQ_{name.upper()}" for name in every}
    known |= {f"{name}_FILE" for name in known} | {"TASKQ_APP", "TASKQ_CONFIG"}
    return [
        f"{variable}{nearest(variable, known)}"
        for variable in sorted(environ)
        if variable.startswith("TASKQ_") and variable not in known
    ]


def check_file(environ: Mapping[str, str]) -> Check:
    """Examine the settings file of the working directory, or the one that TASKQ_CONFIG names."""
    name = "settings.file"
    try:
        origin, app, worker = read_file(environ)
        build(Settings, [(origin, app)])
        build(WorkerSettings, [(f"[worker] of {origin}", worker)])
    except ConfigError as error:
        return Check(name, "failed", str(error), "correct the file; docs/configuration.md has all")
    detail = f"{origin}: {len(app) + len(worker)} settings" if origin else "none in use"
    return Check(name, "ok", detail)


def _app(app: TaskQ) -> Check:
    count = len(app.tasks)
    if not count:
        return Check(
            "app.import",
            "warning",
            f"{app.name} has no tasks",
            "import the modules that declare them, or name them in the setting `imports`",
        )
    return Check("app.import", "ok", f"{app.name}: {count} tasks")


def check_time_limits(app: TaskQ) -> Check:
    """Hold the tasks' hard limits against RabbitMQ's default `consumer_timeout`."""
    name = "tasks.time-limits"
    if not (app.settings.broker or "").startswith("amqp"):
        return Check(name, "ok", "the embedded broker waits as long as a worker lives")
    limits = {task.name: task.spec.time_limit for task in app.tasks.values()}
    long = sorted(n for n, limit_s in limits.items() if limit_s and limit_s > CONSUMER_TIMEOUT_S)
    if long:
        return Check(
            name,
            "warning",
            f"may run longer than RabbitMQ's consumer_timeout (30 minutes): {', '.join(long)}",
            "raise consumer_timeout in rabbitmq.conf above the longest time limit",
        )
    unlimited = sum(limit_s is None for limit_s in limits.values())
    return Check(name, "ok", f"{len(limits)} tasks, {unlimited} of them without a limit")


def check_broker(app: TaskQ) -> Iterator[Check]:
    """Examine an app's broker, and whether dead letters wait there."""
    try:
        broker = app.broker
        found = broker.checks(make_manifest(app).queues())
        yield from found
        if any(check.status == "failed" for check in found):
            return
        depth = broker.depths([DEAD_QUEUE])[DEAD_QUEUE]
    except TaskqError as error:
        yield Check("broker.reachable", "failed", str(error), "start the broker, or check its URL")
        return
    count = 0 if depth is None else depth.ready
    if count:
        advice = "look at them: taskq dead ls"
        yield Check("dead-letters.waiting", "warning", f"{count} dead letters", advice)
    else:
        yield Check("dead-letters.waiting", "ok", "none")


def check_results(app: TaskQ) -> Iterator[Check]:
    """Examine an app's results store."""
    try:
        store = app.results
    except ConfigError as error:
        yield Check("results.configured", "failed", str(error), "correct results= or TASKQ_RESULTS")
        return
    if store is None:
        yield Check(
            "results.configured",
            "warning",
            "results are off: no get(), no cancel, and a redelivered finished task runs again",
            "set results= or TASKQ_RESULTS",
        )
        return
    yield Check("results.configured", "ok", store.url)
    try:
        yield _ping(store)
        yield _round_trip(store)
    except TaskqError as error:
        refused = isinstance(error, ConfigError)
        advice = "check user, password and database" if refused else "start it, or check its URL"
        yield Check("results.reachable", "failed", str(error), advice)
        return
    if (app.settings.results or "").startswith(("redis", "unix")):
        yield from _redis(app.settings.results or "", app.settings.results_timeout_s)


def _ping(store: ResultStore) -> Check:
    name = "results.reachable"
    took_s = min(store.ping() for _ in range(3))
    detail = f"answers in {took_s * 1000:.1f} ms"
    if took_s > _SLOW_S:
        advice = "every settlement waits for it: move it closer to the workers"
        return Check(name, "warning", detail, advice)
    return Check(name, "ok", detail)


def _round_trip(store: ResultStore) -> Check:
    name = "results.round-trip"
    task_id = f"taskq-doctor-{new_id()}"
    record = encode_record(Record(outcome.SUCCESS, at_ms=clock.now_ms(), worker="taskq doctor"))
    try:
        taken = store.store([Write(task_id, record, _RECORD_TTL_S)])
        found = store.fetch([task_id])
        store.forget([task_id])
    except ResultsUnavailable as error:
        return Check(name, "failed", str(error), "see the detail: full, read-only, or too slow?")
    if taken != [True] or found != [record]:
        advice = "is this a replica, or does something else write to it?"
        return Check(name, "failed", "what was written was not what was read", advice)
    return Check(name, "ok", "written, read and deleted")


def _redis(url: str, timeout_s: float) -> Iterator[Check]:
    # A driver: imported where it is needed.
    from taskq.results.redis_facts import read_facts

    try:
        facts = read_facts(url, timeout_s)
    except ResultsUnavailable as error:
        advice = "allow INFO and TIME to this user to have this examined"
        yield Check("results.eviction", "warning", f"cannot be examined: {error}", advice)
        return
    yield check_eviction(facts.policy, facts.max_bytes)
    yield check_skew(facts.skew_s)


def check_eviction(policy: str, max_bytes: int) -> Check:
    """Examine Redis' `maxmemory-policy` and `maxmemory` (0 for no limit)."""
    name = "results.eviction"
    limit = f"maxmemory {max_bytes:,} bytes" if max_bytes else "no maxmemory"
    if policy == "noeviction":
        return Check(name, "ok", f"noeviction, {limit}")
    return Check(
        name,
        "warning",
        f"maxmemory-policy is {policy}, {limit}: an evicted result is a task that never ran",
        "set maxmemory-policy noeviction in redis.conf",
    )


def check_skew(skew_s: float) -> Check:
    """Examine how far Redis' clock is ahead of this one, in seconds."""
    detail = f"Redis' clock is {abs(skew_s):.2f} s {'ahead' if skew_s > 0 else 'behind'}"
    if abs(skew_s) > _SKEW_S:
        advice = "let both machines follow NTP: delays and expiries are off by as much"
        return Check("results.clock", "warning", detail, advice)
    return Check("results.clock", "ok", detail)


def worst(checks: Iterable[Check]) -> Status:
    """Return the worst status of some checks; `ok` when there are none."""
    found = {check.status for check in checks}
    return "failed" if "failed" in found else "warning" if "warning" in found else "ok"
