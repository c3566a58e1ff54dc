"""Checksums of a directory tree, computed by worker processes: one task for each file.

    python examples/checksums/main.py DIR [--workers N] [--json] [--check]

On the embedded queue, or with TASKQ_BROKER and TASKQ_RESULTS set, on RabbitMQ and Redis.
"""

import argparse
import json
import os
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tasks import Measured, app, measure

from taskq import AsyncResult, ResultTimeout, TaskqError

sys.path.append(str(Path(__file__).resolve().parents[1]))
from _worker import Worker, worker_beside

BAR_WIDTH = 40
EXIT_OFF = 1


def find_files(top: bytes, problems: list[str]) -> Iterator[bytes]:
    """Yield every regular file below a directory; links are not followed, nor taken for files."""

    def note(error: OSError) -> None:
        problems.append(f"{shown(os.fsdecode(error.filename))}: {error.strerror}")

    for directory, _, names in os.walk(top, onerror=note):
        for name in names:
            path = os.path.join(directory, name)
            try:
                if stat.S_ISREG(os.lstat(path).st_mode):
                    yield path
            except OSError as error:
                note(error)


def shown(path: str) -> str:
    """Return a path for people: bytes that are no text and line ends as escapes."""
    text = path.encode("utf-8", "backslashreplace").decode()
    return "".join(ch if ch.isprintable() else ch.encode("unicode_escape").decode() for ch in text)


class Progress:
    """How far it is: a bar on a terminal, else a line now and then; on stderr, for pipes' sake."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._bar = sys.stderr.isatty()
        self._pause_s = 0.1 if self._bar else 5.0
        self._next = time.monotonic() + self._pause_s

    def show(self, done: int) -> None:
        """Show that so many of all are done, when it is time or the last one is."""
        if done < self._total and time.monotonic() < self._next:
            return
        self._next = time.monotonic() + self._pause_s
        text = f"{done}/{self._total} files"
        if self._bar:
            filled = BAR_WIDTH * done // max(1, self._total)
            end = "\n" if done == self._total else ""
            bar = "#" * filled + "." * (BAR_WIDTH - filled)
            print(f"\r[{bar}] {text}", end=end, file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)


def wait_for(result: AsyncResult[Measured], worker: Worker) -> Measured:
    """Wait as long as there is a worker that may still do it: a file may be huge."""
    while True:
        try:
            return result.get(timeout=5)
        except ResultTimeout:
            if not worker.is_running():
                raise


def compute(paths: Sequence[bytes], worker: Worker) -> list[Measured]:
    """Send one task for each file, in bulk, and collect what they return, in order."""
    results = app.send_many([measure.s(path) for path in paths])
    progress = Progress(len(paths))
    answers = []
    for done, result in enumerate(results, 1):
        answers.append(wait_for(result, worker))
        progress.show(done)
    return answers


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Print what was found of each file, and the sums."""
    print(f"{'sha256':64} {'size':>12} {'lines':>9} {'longest':>9}  path")
    for row in rows:
        numbers = f"{row['size']:12} {row['lines']:9} {row['longest']:9}"
        print(f"{row['sha256']} {numbers}  {shown(row['path'])}")
    print(f"{len(rows)} files, {sum(row['size'] for row in rows):,} bytes")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("directory", metavar="DIR", help="where to begin")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes; one a core")
    parser.add_argument("--json", action="store_true", help="print a JSON list, sorted by path")
    parser.add_argument("--check", action="store_true", help="compute all here too and compare")
    options = parser.parse_args()
    if not os.path.isdir(options.directory):
        parser.error(f"{options.directory} is not a directory")
    if options.workers < 0:
        parser.error(f"--workers is {options.workers}; use 1 or more")
    return options


def main() -> int:
    """Do all of it and return the exit code: 0, or 1 when something could not be read."""
    options = parse_arguments()
    problems: list[str] = []
    files = sorted(find_files(os.fsencode(options.directory), problems), key=os.fsdecode)
    # Absolute, for the worker's working directory is another one.
    paths = [os.path.abspath(path) for path in files]
    processes = ["-c", str(options.workers)] if options.workers else []
    with worker_beside(str(Path(__file__).with_name("tasks.py")), *processes) as worker, app:
        answers = compute(paths, worker)
    if options.check and answers != [measure(path) for path in paths]:
        print("a file is not as the workers saw it: did it change meanwhile?", file=sys.stderr)
        return EXIT_OFF
    rows: list[dict[str, Any]] = []
    for file, answer in zip(files, answers, strict=True):
        name = os.fsdecode(file)
        if "error" in answer:
            problems.append(f"{shown(name)}: {answer['error']}")
        else:
            rows.append({"path": name, **answer})
    if options.json:
        print(json.dumps(rows, indent=1))
    else:
        print_table(rows)
    for problem in problems:
        print(f"not read: {problem}", file=sys.stderr)
    return EXIT_OFF if problems else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except TaskqError as failure:
        sys.exit(f"{type(failure).__name__}: {failure}")
