"""The first step of a worker: the template is forked before anything else happens.

Hub and template share the memory of what is imported by now, and the app is imported while this
process imports what only a hub needs.
"""

import os
import socket

from taskq.config import WorkerSettings
from taskq.worker import template
from taskq.worker.launcher import TemplateLauncher


def worker_name(settings: WorkerSettings) -> str:
    """Return the worker's name: `host-pid` unless it was given one; `%h` stands for the host."""
    host = socket.gethostname()
    return settings.name.replace("%h", host) if settings.name else f"{host}-{os.getpid()}"


def start_template(settings: WorkerSettings) -> TemplateLauncher | None:
    """Start the template of a worker; None where its settings ask for none."""
    if settings.pool == "solo" or not settings.app:
        return None
    return TemplateLauncher(template.serve, settings.app, worker_name(settings))
