"""The soak: very many tasks, a fifth of them failing, and how the memory of each process grows.

    make soak                            1,000,000 tasks on private servers; half an hour or so
    make soak ARGS="--tasks 20000 --place sqlite"

Prints resident memory of client, hub and executors after each part, and the slope of a line through
the second half of the samples, in MB for 100,000 tasks. Exit 1 when one is steeper than `--limit`,
or a task was lost.
"""

import argparse
import contextlib
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from servers import RabbitServer, RedisServer  # noqa: E402

from taskq import TaskQ  # noqa: E402
from taskq.cli.leaving import end_in_order  # noqa: E402
from taskq.errors import PublishError  # noqa: E402
from taskq.torture.account import unfinished, until  # noqa: E402
from taskq.torture.campaign import isolated, make_client  # noqa: E402
from taskq.torture.fleet import Fleet, Worker  # noqa: E402

FAILING = 5
"""One of so many tasks fails, twice, and becomes a dead letter."""
Samples = dict[str, list[tuple[float, float]]]
"""(Hundred thousands of tasks done, MB) by process."""
BATCH = 1000
"""Tasks confirmed at once; one batch of all of a part can take longer than `publish_timeout_s`."""


def memory_mb(pid: int) -> float:
    """Return the resident memory of a process, 0 when it is gone."""
    with contextlib.suppress(OSError):
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
    return 0.0


@contextlib.contextmanager
def servers(place: str) -> Iterator[tuple[str, str]]:
    """Give URLs of an empty broker and an empty results store."""
    with tempfile.TemporaryDirectory(prefix="ts") as temporary, contextlib.ExitStack() as stack:
        directory = Path(temporary)
        if place == "sqlite":
            url = f"sqlite:///{directory}/soak.db"
            yield url, url
            return
        rabbit, redis = RabbitServer(directory / "rabbitmq"), RedisServer(directory / "redis")
        for server in (rabbit, redis):
            stack.callback(server.destroy)
            server.start()
        yield rabbit.url, redis.url


def send_part(app: TaskQ, start: int, count: int) -> set[str]:
    """Send tasks and return their ids; what a busy broker did not confirm is sent again."""
    names = {
        str(uuid.uuid4()): "torture.fail" if number % FAILING == 0 else "torture.work"
        for number in range(start, start + count)
    }
    ids = list(names)
    for first in range(0, count, BATCH):
        left = set(ids[first : first + BATCH])
        while left:
            try:
                with app.batch():
                    for task_id in left:
                        app.send_task(names[task_id], task_id=task_id)
                break
            except PublishError as error:
                print(f"{len(error.failed_ids)} sends were not confirmed: {error.reason}")
                left &= set(error.failed_ids)
                time.sleep(1)
    return set(ids)


def sample(worker: Worker) -> dict[str, float]:
    """Return the memory of each process."""
    found = {"client": memory_mb(os.getpid()), "hub": worker.memory_mb()}
    for number, pid in enumerate(sorted(worker.executors())):
        found[f"executor {number}"] = memory_mb(pid)
    return found


def slope(points: list[tuple[float, float]]) -> float:
    """Return the slope of the least-squares line through points; 0 for fewer than two."""
    count = len(points)
    mean_x = sum(x for x, _ in points) / max(count, 1)
    mean_y = sum(y for _, y in points) / max(count, 1)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0


def soak(app: TaskQ, worker: Worker, tasks: int, part: int, samples: Samples) -> None:
    """Send and finish all tasks, part by part, and add to the samples after each."""
    for start in range(0, tasks, part):
        began_s = time.monotonic()
        left = send_part(app, start, min(part, tasks - start))
        ids = list(left)

        def done(left: set[str] = left) -> bool:
            still = unfinished(app, left)
            left &= still
            return not left

        if not until(done, 1800):
            raise SystemExit(f"{len(left)} tasks did not end, such as {next(iter(left))}")
        store = app.results
        if store is not None:
            # What is kept of them is the store's memory, not the processes'.
            store.forget(ids)
        rate = len(ids) / (time.monotonic() - began_s)
        done_tasks = start + len(ids)
        told = []
        for name, value in sample(worker).items():
            samples.setdefault(name, []).append((done_tasks / 100_000, value))
            told.append(f"{name} {value:.1f} MB")
        print(f"{done_tasks:>9,} tasks, {rate:6.0f}/s: {', '.join(told)}", flush=True)


def main() -> int:
    """Run; returns 1 when memory grows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("--part", type=int, default=0, help="tasks between two samples")
    parser.add_argument("--place", choices=("rabbitmq", "sqlite"), default="rabbitmq")
    parser.add_argument("--limit", type=float, default=1.0, help="MB for 100,000 tasks")
    arguments = parser.parse_args()
    part = arguments.part or max(1000, arguments.tasks // 40)
    samples: Samples = {}
    code = 1
    try:
        with contextlib.ExitStack() as stack:
            # In the background Ctrl-C does not reach it: TERM tells what was found so far.
            end_in_order(stack)
            code = run(stack, arguments.place, arguments.tasks, part, samples)
    finally:
        slopes = {name: slope(points[len(points) // 2 :]) for name, points in samples.items()}
        for name, value in slopes.items():
            print(f"{name}: {value:+.2f} MB for 100,000 tasks", flush=True)
    steep = [name for name, value in slopes.items() if value > arguments.limit]
    if steep or code:
        print(f"steeper than {arguments.limit:g}: {', '.join(steep) or 'none'}; exit code {code}")
    return 1 if steep or code else 0


def run(stack: contextlib.ExitStack, place: str, tasks: int, part: int, samples: Samples) -> int:
    """Start servers and a worker, soak them, and return the worker's exit code."""
    broker, results = stack.enter_context(servers(place))
    here = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    stack.enter_context(isolated(here, {}))
    app = stack.enter_context(make_client(broker, results, ""))
    fleet = Fleet(here, {"TASKQ_BROKER": broker, "TASKQ_RESULTS": results}, count=1)
    stack.callback(fleet.close)
    fleet.fill()
    soak(app, fleet.workers[0], tasks, part, samples)
    return fleet.workers[0].stop()


if __name__ == "__main__":
    sys.exit(main())
