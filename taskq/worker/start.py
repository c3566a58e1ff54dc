"""The first step of a worker: the template is forked before anything else happens.

Hub and template share the memory of what is imported by now, and the app is imported while this
process imports what only a hub needs.
"""

import os
import socket

from taskq.config import WorkerSettings
from taskq.errors import ConfigError
from taskq.worker import template
from taskq.worker.launcher import TemplateLauncher


def worker_name(settings: WorkerSettings) -> str:
    """Return the worker's name: `host-pid` unless it was given one; `%h` stands for the host."""
    host = socket.gethostname()
    return settings.name.replace("%h", host) if settings.name else f"{host}-{os.getpid()}"


def named_app(settings: WorkerSettings) -> str:
    """Return where the app is.

    Raises:
        ConfigError: If nothing says so.
    """
    if not settings.app:
        raise ConfigError("which app? use -A module:name, or set TASKQ_APP")
    return settings.app


def start_template(settings: WorkerSettings) -> TemplateLauncher | None:
    """Start the template of a worker; None for `solo`, which has none.

    Raises:
        ConfigError: If the settings name no app.
    """
    place = named_app(settings)
    if settings.pool == "solo":
        return None
    return TemplateLauncher(template.serve, place, worker_name(settings))
