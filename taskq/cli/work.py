"""`taskq worker`."""

from typing import Any

import click

from taskq.cli.base import app_option, app_place


@click.command(
    epilog="""\b
Examples:
  taskq worker -A shop.tasks:app
  taskq worker -A shop.tasks:app -Q mail,default -c 8 -P thread
  taskq worker --profile workers/general.py --health-port 8080
\b
Signals: TERM finishes running tasks and stops, INT does the same and requeues
when repeated, QUIT requeues at once, HUP replaces executors, TSTP takes no
further tasks, USR1 prints stacks."""
)
@app_option
@click.option("-Q", "--queues", metavar="A,B", help="Queues; those of the app's tasks by default.")
@click.option("-c", "--concurrency", type=int, metavar="N", help="Tasks at once; default: cores.")
@click.option(
    "-P",
    "--pool",
    type=click.Choice(["process", "thread", "asyncio", "solo"]),
    help="How tasks run (default: process).",
)
@click.option("--executors", type=int, metavar="M", help="Processes of thread and asyncio pools.")
@click.option("-n", "--name", metavar="NAME", help="Name of this worker; %h is the host.")
@click.option(
    "-l",
    "--log-level",
    "--loglevel",
    type=click.Choice(["debug", "info", "warning", "error"], case_sensitive=False),
    help="What is logged (default: info).",
)
@click.option("--log-format", type=click.Choice(["text", "json"]), help="How (default: text).")
@click.option("--prefetch", metavar="N|auto", help="Messages held at most (default: auto).")
@click.option("--burst", is_flag=True, default=None, help="Stop when the queues are empty.")
@click.option("--grace", "grace_s", type=float, metavar="S", help="Seconds to finish (default 25).")
@click.option("--health-port", type=int, metavar="P", help="Serve /livez, /readyz, /metrics.")
@click.option("--max-tasks-per-child", type=int, metavar="N", help="Replace executors after N.")
@click.option("--max-memory-per-child", "max_memory_per_child_mb", type=int, metavar="MB")
@click.option("--profile", metavar="FILE", help="Settings file, such as workers/general.py.")
def worker(profile: str | None, **options: Any) -> int:
    """Run tasks until told to stop."""
    from taskq.config import worker_settings
    from taskq.errors import ConfigError
    from taskq.worker.logs import set_up
    from taskq.worker.profile import load_profile
    from taskq.worker.worker import run_worker

    if options["log_level"]:
        options["log_level"] = options["log_level"].lower()
    loaded = load_profile(profile) if profile else ("", {})
    settings = worker_settings({**options, "app": app_place()}, loaded)
    set_up(settings.log_level, settings.log_format)
    try:
        return run_worker(settings)
    except ConfigError as error:
        # The user's own traceback, which the import left behind, only where it was asked for.
        if settings.log_level == "debug":
            for note in getattr(error, "__notes__", []):
                click.echo(note, err=True)
        raise
