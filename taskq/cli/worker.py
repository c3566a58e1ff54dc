"""`taskq worker`."""

from typing import TYPE_CHECKING, Any

import click

from taskq.cli.framework import Command, app_place, log_level

if TYPE_CHECKING:
    from taskq.config import WorkerSettings


@click.command(
    cls=Command,
    examples="""
    taskq worker -A shop:app                       default queues, a process per core
    taskq worker -A shop:app -Q mail,reports -c 4
    taskq worker -A shop:app -P thread -c 50       tasks that wait for the network
    taskq worker -A shop:app --profile workers/general.py --log-format json
    taskq worker -A shop:app --burst               empty the queues, then exit 0
    """,
)
@click.option("-Q", "--queues", metavar="A,B", help="Queues to consume, in order of preference.")
@click.option(
    "-c", "--concurrency", type=click.IntRange(0), help="Tasks that run at once; 0: one per core."
)
@click.option(
    "-P",
    "--pool",
    type=click.Choice(["process", "thread", "asyncio", "solo"], case_sensitive=False),
    help="How tasks run: a process each, threads, coroutines, or in the worker itself.",
)
@click.option(
    "--executors", type=click.IntRange(1), help="Processes that threads or coroutines spread over."
)
@click.option("-n", "--name", help="Name of the worker; %h stands for the host.")
@click.option("--prefetch", metavar="N|auto", help="Messages held at most; auto by default.")
@click.option(
    "--burst", is_flag=True, default=None, help="Stop when the queues are empty and nothing is due."
)
@click.option(
    "--grace",
    "grace_s",
    type=click.FloatRange(0),
    metavar="S",
    help="Seconds that running tasks may finish in at a warm stop.",
)
@click.option(
    "--health-port", type=click.IntRange(0, 65535), help="Port of /livez, /readyz and /metrics."
)
@click.option(
    "--with-scheduler", is_flag=True, default=None, help="Run a scheduler beside the worker."
)
@click.option("--log-format", type=click.Choice(["text", "json"], case_sensitive=False))
@click.option(
    "--profile", metavar="FILE", help="Python file of settings, such as workers/general.py."
)
@click.option(
    "--max-tasks-per-child", type=click.IntRange(0), help="Replace an executor after so many."
)
@click.option(
    "--max-memory-per-child",
    "max_memory_per_child_mb",
    type=click.IntRange(0),
    metavar="MB",
    help="Replace an executor that uses more megabytes.",
)
def worker(profile: str | None, **options: Any) -> int:
    """Run tasks until a signal stops the worker.

    Options win over TASKQ_* variables, those over the profile, that over taskq.toml.

    TERM and INT stop it warm: it takes nothing more, gives back what has not started, and lets
    running tasks finish for --grace seconds. A second INT, or QUIT, stops it cold: running tasks go
    back to their queues. HUP replaces the executors, TSTP makes it take nothing more, USR1 writes
    all stacks to stderr.
    """
    from taskq.config import worker_settings
    from taskq.worker.profile import load_profile

    options["app"] = app_place() or None
    options["log_level"] = log_level()
    return _run(worker_settings(options, load_profile(profile) if profile else ("", {})))


def _run(settings: "WorkerSettings") -> int:
    from taskq.worker.start import start_template

    # First of all: it imports the app while this process imports what a hub needs, and shares the
    # memory of what is imported by now.
    launcher = start_template(settings)

    from taskq.scheduler.beside import scheduler_beside
    from taskq.worker.logs import set_up
    from taskq.worker.worker import run_worker

    set_up(settings.log_level, settings.log_format)
    with scheduler_beside(settings):
        return run_worker(settings, launcher)
