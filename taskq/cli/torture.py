"""`taskq torture`: faults on purpose, and an exact account of every task."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from taskq.cli.errors import Failure
from taskq.cli.framework import Command, json_option
from taskq.cli.leaving import end_in_order
from taskq.cli.output import say, table, write_json

if TYPE_CHECKING:
    from taskq.torture.campaign import Row
    from taskq.torture.faults import Bench

_COLUMNS: Final = (
    "fault",
    "strikes",
    "confirmed",
    "unconfirmed",
    "completed",
    "queued",
    "dead",
    "lost",
    "duplicated",
    "early",
    "slowest_send_s",
)


@click.command(
    cls=Command,
    examples="""
    taskq torture                                        on a file of its own, 2 minutes
    taskq torture --broker amqp://localhost// --results redis://localhost/0 --minutes 10
    taskq torture --faults kill,net --seed 7 --json
    taskq torture --faults broker --broker-command 'systemctl restart rabbitmq-server'
    """,
)
@click.option("--broker", metavar="URL", help="TASKQ_BROKER by default, or else a new file.")
@click.option("--results", metavar="URL", help="TASKQ_RESULTS by default, or the same new file.")
@click.option("--faults", default="", metavar="NAMES", help="Such as kill,net; all by default.")
@click.option(
    "--minutes",
    type=click.FloatRange(0.01, 10_000),
    default=2.0,
    show_default=True,
    help="How long the load lasts, all faults together.",
)
@click.option(
    "--rate",
    type=click.FloatRange(1, 10_000),
    default=100.0,
    show_default=True,
    help="Tasks sent each second.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    default=2,
    show_default=True,
    help="Workers, of two slots each.",
)
@click.option("--seed", type=click.IntRange(0), help="Repeats the choices of an earlier run.")
@click.option("--prefix", help="Of all names on the broker; one that nobody has by default.")
@click.option(
    "--broker-command", default="", metavar="COMMAND", help="Restarts the broker: fault `broker`."
)
@click.option(
    "--results-command",
    default="",
    metavar="COMMAND",
    help="Restarts the results store: fault `results`.",
)
@json_option
def torture(as_json: bool, **options: Any) -> None:
    """Cause faults under load and count what became of every task that was confirmed.

    Workers are killed, stopped and restarted, connections cut and silenced; your servers are
    touched only by the commands you give. All happens below a prefix of its own on the broker, or
    in a new file, and is removed afterwards. docs/faults.md says what each fault does.

    Exit code 1 when a task was lost, early, or left over, or a send took too long.
    """
    with contextlib.ExitStack() as stack:
        end_in_order(stack)
        directory = stack.enter_context(_directory())
        rows, seed, broker = _run(stack, directory, options, as_json)
        failed = [row for row in rows if row.failures]
        if as_json:
            report = [row.as_dict() for row in rows]
            write_json({"broker": broker, "seed": seed, "ok": not failed, "faults": report})
        else:
            _show(rows)
        if failed:
            what = "; ".join(f"{row.fault}: {', '.join(row.failures)}" for row in failed)
            raise Failure(f"{what} (seed {seed})")
    if not as_json:
        say("\nNothing was lost.")


@contextlib.contextmanager
def _directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="taskq-torture-") as directory:
        yield Path(directory)


def _run(
    stack: contextlib.ExitStack, directory: Path, options: dict[str, Any], quiet: bool
) -> tuple[list["Row"], int, str]:
    from taskq.torture.campaign import isolated, make_random, run_campaign
    from taskq.torture.faults import choose

    url = f"sqlite:///{directory}/torture.db"
    broker = options["broker"] or os.environ.get("TASKQ_BROKER") or url
    results = (
        options["results"]
        or os.environ.get("TASKQ_RESULTS")
        or (broker if broker.startswith("sqlite:") else "")
    )
    if not results:
        raise click.UsageError("which results store? give --results; the account needs it")
    if "memory:" in (broker + results):
        raise click.UsageError("memory:// lives inside one process; worker processes cannot see it")
    servers = not broker.startswith("sqlite:")
    commands = {name for name in ("broker", "results") if options[f"{name}_command"]}
    chosen = choose(options["faults"], servers=servers, commands=commands)
    rng, seed = make_random(options["seed"])
    stack.enter_context(isolated(directory, {}))
    bench = _bench(stack, directory, options, (broker, results), [f.network for f in chosen])
    bench.rng = rng
    masked = bench.app.broker.url
    if not quiet:
        say(f"{masked}, results {bench.app.results.url if bench.app.results else '-'}, seed {seed}")
        say(f"Faults: {', '.join(fault.name for fault in chosen)}\n")

    def tell(row: "Row") -> None:
        if not quiet:
            counts = row.as_dict()
            told = ", ".join(f"{name} {counts[name]}" for name in _COLUMNS[1:])
            say(f"{row.fault}: {told}")

    rows = run_campaign(bench, chosen, options["minutes"] * 60, options["rate"], tell)
    return rows, seed, masked


def _bench(
    stack: contextlib.ExitStack,
    directory: Path,
    options: dict[str, Any],
    urls: tuple[str, str],
    network: list[bool],
) -> "Bench":
    """Check the place, and put up proxies, client and workers; the stack takes them down."""
    import random

    from taskq.torture.campaign import make_client
    from taskq.torture.faults import Bench
    from taskq.torture.fleet import Fleet
    from taskq.torture.place import check_free as check
    from taskq.torture.place import clean_up, file_of, new_prefix

    broker, results = urls
    embedded = broker.startswith("sqlite:")
    prefix = options["prefix"]
    if prefix is None:
        prefix = "" if embedded else new_prefix()
    for path in filter(None, map(file_of, urls)):
        if not path.exists():
            stack.callback(_remove, path)
    direct = stack.enter_context(make_client(broker, results, prefix))
    check(direct)
    through = list(urls)
    proxies = []
    if any(network):
        from taskq.torture.proxy import proxied

        for index, url in enumerate(urls):
            if not url.startswith("sqlite:"):
                through[index], proxy = proxied(url)
                stack.callback(proxy.close)
                proxies.append(proxy)
    app = stack.enter_context(make_client(through[0], through[1], prefix))
    stack.callback(clean_up, direct)
    settings = {
        "TASKQ_BROKER": through[0],
        "TASKQ_RESULTS": through[1],
        "TASKQ_PREFIX": prefix,
        "TASKQ_CONFIG": os.environ["TASKQ_CONFIG"],
        "TASKQ_LEASE_S": "2",
    }
    fleet = Fleet(directory, settings, options["workers"])
    stack.callback(fleet.close)
    commands = options["broker_command"], options["results_command"]
    return Bench(app, fleet, random.Random(), proxies, *commands)


def _remove(path: Path) -> None:
    for name in (path, *path.parent.glob(f"{path.name}-*")):
        name.unlink(missing_ok=True)


def _show(rows: list["Row"]) -> None:
    say()
    table(
        [name.upper().replace("_", " ") for name in _COLUMNS],
        [[row.as_dict()[name] for name in _COLUMNS] for row in rows],
    )
