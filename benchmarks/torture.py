"""The long torture: every fault on private servers, and its report for docs/faults.md.

    make torture                                  30 minutes
    make torture ARGS="--minutes 3 --places sqlite"

The servers are those of the tests: nothing of the machine's own is touched. With `--write` the
report replaces the last one in docs/faults.md.
"""

import argparse
import contextlib
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from rabbitmq4 import RabbitServer4  # noqa: E402
from servers import RabbitServer, RedisServer, ServerMissing  # noqa: E402

KINDS = {"rabbitmq": RabbitServer, "rabbitmq4": RabbitServer4, "redis": RedisServer}
MARK = "<!-- last report -->"
COLUMNS = (
    "fault",
    "strikes",
    "confirmed",
    "unconfirmed",
    "completed",
    "dead",
    "queued",
    "lost",
    "duplicated",
    "early",
    "slowest_send_s",
    "files_grown",
    "memory_grown_mb",
)


def open_server(kind: str, directory: Path) -> RabbitServer | RedisServer:
    """Return a server by its directory."""
    if kind == "redis":
        return RedisServer(directory, durable=True)
    made: RabbitServer = KINDS[kind](directory)
    return made


def strike(kind: str, directory: Path) -> None:
    """Do to a server what its turn is: kill, restart in order, or stop for a while."""
    server = open_server(kind, directory)
    turns = directory / "turns"
    turn = int(turns.read_text()) if turns.exists() else 0
    turns.write_text(str(turn + 1))
    if turn % 3 == 0:
        server.kill()
        server.start()
    elif turn % 3 == 1:
        server.restart()
    else:
        server.pause()
        time.sleep(6)
        server.resume()


@contextlib.contextmanager
def place(name: str) -> Iterator[list[str]]:
    """Give the options of `taskq torture` for one broker, with the servers it needs."""
    if name == "sqlite":
        yield []
        return
    kind = {"3.10": "rabbitmq", "4": "rabbitmq4"}[name]
    with tempfile.TemporaryDirectory(prefix="tt") as temporary, contextlib.ExitStack() as stack:
        directory = Path(temporary)
        words = []
        for option, which in (("broker", kind), ("results", "redis")):
            server = open_server(which, directory / which)
            stack.callback(server.destroy)
            server.start()
            command = [sys.executable, __file__, "--strike", which, str(directory / which)]
            words += [f"--{option}", server.url, f"--{option}-command", shlex.join(command)]
        yield words


def torture(options: list[str], minutes: float) -> dict[str, Any]:
    """Run the command and return its report; lost tasks end the program."""
    words = [sys.executable, "-m", "taskq", "torture", "--json", "--minutes", str(minutes)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*words, *options], env=environment, stdout=subprocess.PIPE, text=True, check=False
    )
    if not done.stdout:
        raise SystemExit(f"taskq torture ended with {done.returncode}")
    report: dict[str, Any] = json.loads(done.stdout)
    report["code"] = done.returncode
    return report


def as_text(name: str, report: dict[str, Any]) -> str:
    """Return a report as a table."""
    lines = [f"**{name}**, seed {report['seed']}:", ""]
    lines += [f"| {' | '.join(COLUMNS)} |".replace("_", " ")]
    lines += ["|---" + "|---:" * (len(COLUMNS) - 1) + "|"]
    for row in report["faults"]:
        cells = ("-" if row[column] is None else str(row[column]) for column in COLUMNS)
        lines.append(f"| {' | '.join(cells)} |")
    failures = [f"{row['fault']}: {text}" for row in report["faults"] for text in row["failures"]]
    lines += ["", *(failures or ["No guarantee was broken."]), ""]
    return "\n".join(lines)


def main() -> int:
    """Run; returns 1 when a guarantee was broken."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--places", default="sqlite,3.10,4")
    parser.add_argument("--write", action="store_true", help="into docs/faults.md")
    parser.add_argument("--strike", nargs=2, metavar=("KIND", "DIRECTORY"), help=argparse.SUPPRESS)
    arguments, further = parser.parse_known_args()
    if arguments.strike:
        strike(arguments.strike[0], Path(arguments.strike[1]))
        return 0
    places = arguments.places.split(",")
    texts, broken = [], False
    for name in places:
        try:
            with place(name) as options:
                report = torture([*options, *further], arguments.minutes / len(places))
        except ServerMissing as missing:
            print(f"{name}: {missing}")
            continue
        broken = broken or not report["ok"]
        texts.append(as_text("SQLite" if name == "sqlite" else f"RabbitMQ {name}", report))
        print(texts[-1], flush=True)
    if arguments.write:
        page = ROOT / "docs" / "faults.md"
        head = page.read_text().partition(MARK)[0]
        day = time.strftime("%Y-%m-%d", time.gmtime())
        made = f"{day}, {arguments.minutes:g} minutes, {os.cpu_count()} cores, "
        made += f"Python {platform.python_version()}."
        page.write_text(f"{head}{MARK}\n\n{made}\n\n" + "\n".join(texts).rstrip() + "\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
