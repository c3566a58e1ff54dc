"""`taskq scheduler`."""

import click

from taskq.cli.framework import Command, app_place, import_app, log_level
from taskq.cli.values import SPAN
from taskq.errors import ConfigError

_LEASE_S = 10.0


@click.command(
    cls=Command,
    examples="""
    taskq scheduler -A shop:app                    run as many as you like: one leads
    taskq scheduler -A shop:app --health-port 8080 --log-format json
    taskq worker -A shop:app --with-scheduler      one process less, for small installations
    """,
)
@click.option("-n", "--name", help="Name of the scheduler; host and pid by default.")
@click.option(
    "--lease",
    "lease_s",
    type=SPAN,
    default=_LEASE_S,
    metavar="S",
    help=f"After a leader's death another has taken over within this ({_LEASE_S:g} s).",
)
@click.option(
    "--health-port", type=click.IntRange(0, 65535), help="Port of /livez, /readyz and /metrics."
)
@click.option("--log-format", type=click.Choice(["text", "json"], case_sensitive=False))
@click.option("--until-eof", is_flag=True, hidden=True)
def scheduler(
    name: str | None,
    lease_s: float,
    health_port: int | None,
    log_format: str | None,
    until_eof: bool,
) -> int:
    """Send what is due: @app.task(schedule=...), app.schedules, taskq.toml.

    At its start it makes the stored schedules what code and taskq.toml declare; dynamic ones stay.
    Each tick becomes one task, however many schedulers run. TERM and INT stop it.
    """
    from taskq.config import worker_settings
    from taskq.scheduler.process import run_scheduler
    from taskq.worker.logs import set_up

    options = {
        "app": app_place() or None,
        "name": name,
        "health_port": health_port,
        "log_format": log_format,
        "log_level": log_level(),
    }
    settings = worker_settings(options)
    set_up(settings.log_level, settings.log_format)
    if not settings.app:
        raise ConfigError("which app? use -A module:name, or set TASKQ_APP")
    with import_app(settings.app) as app:
        return run_scheduler(
            app,
            name=settings.name,
            lease_s=lease_s,
            health_port=settings.health_port,
            until_eof=until_eof,
        )
