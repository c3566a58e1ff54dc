"""What `taskq doctor` examines: a table of checks, each with what to do when it fails."""

import importlib.metadata
import platform
import sys

from taskq._version import __version__
from taskq.app import TaskQ
from taskq.brokers.base import DEAD_QUEUE, Check
from taskq.errors import ConfigError, TaskqError
from taskq.loading import load_app
from taskq.worker.manifest import make_manifest

_CLASHES = ("taskq", "taskq-py")
_CONSUMER_TIMEOUT_S = 1800.0


def examine(place: str | None) -> list[Check]:
    """Run every check and return one line for each.

    Args:
        place: Where the app is, or None to examine the settings alone.
    """
    checks = [_python(), _version(), _clash(_installed())]
    app = _settings(place, checks)
    if app is None:
        return checks
    try:
        checks += _broker(app)
        checks += _results(app)
        checks += _time_limits(app)
    finally:
        app.close()
    return checks


def _python() -> Check:
    if sys.flags.optimize:
        return Check(
            "python", "warning", "runs with -O, which strips asserts from tasks", "leave -O out"
        )
    return Check("python", "ok", platform.python_version())


def _version() -> Check:
    return Check("taskq", "ok", __version__)


def _installed() -> list[str]:
    names = []
    for name in _CLASHES:
        try:
            importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        names.append(name)
    return names


def _clash(found: list[str]) -> Check:
    if found:
        return Check(
            "name-clash",
            "failed",
            f"{', '.join(found)} is installed in this environment and brings another `taskq`",
            f"pip uninstall {' '.join(found)}, then pip install --force-reinstall taskq-mq",
        )
    return Check("name-clash", "ok", "no other distribution brings a package `taskq`")


def _settings(place: str | None, checks: list[Check]) -> TaskQ | None:
    """Append the checks of settings and app; return the app when there is one to examine."""
    try:
        app = TaskQ("doctor")
    except ConfigError as error:
        checks.append(Check("settings", "failed", str(error), "correct or remove it"))
        return None
    checks.append(Check("settings", "ok", "files and TASKQ_* variables are readable"))
    if place is None:
        checks.append(Check("app", "ok", "none named; use -A to examine one"))
        return app
    try:
        app = load_app(place)
    except ConfigError as error:
        checks.append(Check("app", "failed", str(error), "see the file and line above"))
        return None
    checks.append(Check("app", "ok", f"{app.name}: {len(app.tasks)} tasks"))
    return app


def _broker(app: TaskQ) -> list[Check]:
    queues = make_manifest(app).queues()
    try:
        found = list(app.broker.checks(queues))
        depth = app.broker.depths([DEAD_QUEUE]).get(DEAD_QUEUE)
    except TaskqError as error:
        return [Check("broker.reachable", "failed", str(error), "is it running, is the URL right?")]
    if depth is not None and depth.ready:
        found.append(
            Check(
                "broker.dead-letters",
                "warning",
                f"{depth.ready} dead letters wait",
                "look at them with `taskq dead ls`",
            )
        )
    return found


def _results(app: TaskQ) -> list[Check]:
    try:
        store = app.results
        if store is None:
            return [
                Check(
                    "results.enabled",
                    "warning",
                    "results are off: no get(), no cancel, finished tasks may run again",
                    "set results= or TASKQ_RESULTS",
                )
            ]
        took_s = store.ping()
    except TaskqError as error:
        return [
            Check("results.reachable", "failed", str(error), "is it running, is the URL right?")
        ]
    status: Check
    if took_s > 0.1:
        status = Check(
            "results.reachable",
            "warning",
            f"{store.url} answers in {took_s * 1000:.0f} ms",
            "a store this far away slows every settlement; move it closer",
        )
    else:
        status = Check("results.reachable", "ok", f"{store.url} in {took_s * 1000:.1f} ms")
    return [status]


def _time_limits(app: TaskQ) -> list[Check]:
    if "amqp" not in (app.settings.broker or ""):
        return []
    long = [
        task.name
        for task in app.tasks.values()
        if (task.spec.time_limit or 0) > _CONSUMER_TIMEOUT_S
    ]
    if long:
        return [
            Check(
                "tasks.time-limits",
                "warning",
                f"{', '.join(long)} may run longer than RabbitMQ's consumer_timeout of 30 minutes",
                "raise consumer_timeout in rabbitmq.conf above the longest time limit",
            )
        ]
    return [Check("tasks.time-limits", "ok", "none above RabbitMQ's consumer_timeout")]


CHECKS: dict[str, str] = {
    "python": "Python runs without -O, which would strip asserts from tasks",
    "taskq": "the version in use",
    "name-clash": "no other distribution brings a package `taskq`",
    "settings": "files and TASKQ_* variables hold known names and values",
    "app": "the app that -A names can be imported",
    "broker.reachable": "the broker answers, with the right password and virtual host",
    "broker.dead-letters": "no dead letters wait",
    "results.enabled": "a results store is configured",
    "results.reachable": "the results store answers, and soon",
    "tasks.time-limits": "no task may run longer than RabbitMQ lets a message unacknowledged",
}
"""What each check says when it is well; brokers add their own."""
