"""Measures lifecycle events: what they cost a worker, the bridge, the history, remote calls.

    python benchmarks/events.py cost [--tasks N] [--rounds N]    CPU of a task, events on and off
    python benchmarks/events.py bridge [--events N] [--place P]  rate and memory of the bridge
    python benchmarks/events.py history [--events N] [--file F]  one id's history among N events
    python benchmarks/events.py rpc [--calls N]                  round trips of `app.rpc`

Private servers are started and ended by the run. Exit 1 when something was lost or wrong.
"""

import argparse
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
HERE = Path(__file__).parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(HERE)]

from soak import memory_mb, slope  # noqa: E402
from stage import Servers, Stage  # noqa: E402
from systems import SYSTEMS  # noqa: E402
from tree import cpu_s  # noqa: E402

from taskq import TaskQ  # noqa: E402
from taskq.events.bus import Record, Recorder  # noqa: E402
from taskq.events.schema import read_batch  # noqa: E402
from taskq.ids import new_id  # noqa: E402

Draw = random.Random(7)


def life(task_id: str, at_us: int, root_id: str = "") -> list[Record]:
    """Return the records of one task: sent, received, started, succeeded; one in 20 is retried."""
    run = (task_id, "shop.charge", "default", 0, root_id, root_id)
    sent = ("task.sent", at_us, 0, *run, 0, None, 0, 0)
    begun, ended = at_us + 3_000, at_us + 3_000 + 40_000
    records = [sent]
    if Draw.random() < 0.05:
        error = {"error": {"type": "OSError", "message": "the payment provider is away"}}
        records.append(("task.retried", ended, begun, *run, 40_000, error, at_us + 1_000, 0))
        begun, ended = begun + 2_000_000, ended + 2_000_000
        run = (task_id, "shop.charge", "default", 1, root_id, root_id)
    records.append(("task.succeeded", ended, begun, *run, 40_000, None, begun - 1_000, 0))
    return records


def fill_history(path: str, count: int) -> list[str]:
    """Write events into a history; return some of the ids that are there."""
    from taskq.events.history import History

    recorder, book = (
        Recorder("shop", worker="w1"),
        History(path, max_events=10**9, max_bytes=10**12),
    )
    at_us = time.time_ns() // 1000 - count * 500
    done, kept, began_s = 0, [], time.monotonic()
    while done < count:
        for _ in range(50):
            for _ in range(100):
                task_id = new_id()
                recorder.add(life(task_id, at_us))
                if Draw.random() < 0.1:
                    recorder.add(life(new_id(), at_us + 50_000, task_id))
                at_us += 2_000
            if Draw.random() < 0.02:
                kept.append(task_id)
        while (item := recorder.take()) is not None:
            done += book.add(read_batch(item.message.body))
        if done % 1_000_000 < 25_000:
            print(f"{done:>11,} events, {done / (time.monotonic() - began_s):,.0f}/s", flush=True)
    book.close()
    return kept


def history(options: argparse.Namespace) -> int:
    """Time `History.life` and `taskq history` of random ids."""
    from taskq.events.history import History

    with tempfile.TemporaryDirectory() as directory:
        path = options.file or f"{directory}/history.db"
        ids = fill_history(path, options.events)
        size_bytes = Path(path).stat().st_size
        book = History(path, max_events=10**9, max_bytes=10**12)
        count, waits, found = book.count(), [], 0
        for task_id in Draw.sample(ids, min(len(ids), 500)):
            start = time.perf_counter()
            events = book.life(task_id)
            waits.append((time.perf_counter() - start) * 1000)
            found += len(events)
        book.close()
        env = {**os.environ, "PYTHONPATH": str(ROOT), "TASKQ_BROKER": f"sqlite:///{directory}/x.db"}
        words = ["history", ids[-1], "--file", path, "--json"]
        start = time.perf_counter()
        shown = subprocess.run(
            [sys.executable, "-m", "taskq", *words], env=env, capture_output=True, check=True
        )
        whole_ms = (time.perf_counter() - start) * 1000
    waits.sort()
    tell(
        "history",
        events=count,
        GB=round(size_bytes / 1e9, 2),
        bytes_each=round(size_bytes / count),
        first_ms=round(waits[-1], 2),
        p50_ms=round(statistics.median(waits), 3),
        p99_ms=round(waits[int(len(waits) * 0.99)], 2),
        events_a_task=round(found / len(waits), 1),
        command_ms=round(whole_ms),
    )
    return 0 if len(json.loads(shown.stdout)) >= 4 else 1


@contextlib.contextmanager
def started(*servers: Any) -> Iterator[None]:
    """Run private servers while the block lasts."""
    with contextlib.ExitStack() as stack:
        for server in servers:
            stack.callback(server.destroy)
            server.start()
        yield


def publish_lives(url: str, count: int) -> int:
    """Publish events of tasks in batches as a busy worker does; return how many."""
    from taskq.brokers import open_broker
    from taskq.brokers.base import BrokerOptions

    recorder, broker, done = Recorder("shop", worker="w1"), open_broker(url, BrokerOptions()), 0
    broker.events("kafka").close()
    at_us = time.time_ns() // 1000
    while done < count:
        parts = []
        for _ in range(50):
            for _ in range(100):
                recorder.add(life(new_id(), at_us))
                at_us += 100
            item = recorder.take()
            if item is not None:
                done += len(read_batch(item.message.body))
                parts.append(item)
        if errors := [error for error in broker.publish(parts, 60) if error]:
            raise SystemExit(f"events could not be published: {errors[0]}")
    broker.close()
    return done


def stored(bootstrap: str, topic: str) -> int:
    """Return how many records a topic has; -1 while nobody can say."""
    import confluent_kafka as ck

    consumer = ck.Consumer({"bootstrap.servers": bootstrap, "group.id": "count", "log_level": 0})
    try:
        found = consumer.list_topics(topic, timeout=30).topics[topic].partitions
        ends = [consumer.get_watermark_offsets(ck.TopicPartition(topic, n), 30) for n in found]
    except ck.KafkaException:
        # It was made a moment ago, and nobody leads it yet.
        return -1
    finally:
        consumer.close()
    return sum(high - low for low, high in ends)


@contextlib.contextmanager
def bridge_process(
    url: str, bootstrap: str, directory: Path
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run `taskq bridge kafka` while the block lasts."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TASKQ_BROKER": url}
    words = ["bridge", "kafka", "--bootstrap", bootstrap, "--create-topics", "--replication", "1"]
    with (directory / "bridge.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "taskq", *words], cwd=directory, env=env, stdout=log, stderr=log
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


def bridge(options: argparse.Namespace) -> int:
    """Let a bridge carry events that wait for it; its CPU, its rate, its memory."""
    from kafka_server import KafkaServer
    from servers import RabbitServer

    topic = "taskq.task-events"
    with tempfile.TemporaryDirectory(prefix="te") as name:
        directory = Path(name)
        kafka = KafkaServer(directory / "kafka")
        if options.place == "sqlite":
            url, servers = f"sqlite:///{directory}/work.db", [kafka]
        else:
            rabbit = RabbitServer(directory / "rabbit")
            url, servers = "", [rabbit, kafka]
        with started(*servers):
            url = url or rabbit.url
            wanted = publish_lives(url, options.events)
            points: list[tuple[float, float]] = []
            with bridge_process(url, kafka.bootstrap, directory) as process:
                have, first, deadline = 0, (0.0, 0.0, 0), time.monotonic() + 1800
                while have < wanted and time.monotonic() < deadline and process.poll() is None:
                    time.sleep(0.5)
                    have = max(have, stored(kafka.bootstrap, topic))
                    now = time.monotonic(), cpu_s([process.pid]), have
                    if have and not first[2]:
                        first = now
                    points.append((have / 100_000, memory_mb(process.pid)))
            wall_s, spent_s, carried = (now[i] - first[i] for i in range(3))
    tell(
        f"bridge {options.place}",
        events=wanted,
        in_topic=have,
        wall_per_s=round(carried / wall_s),
        one_core_per_s=round(carried / spent_s),
        us_each=round(spent_s / carried * 1e6, 1),
        MB_first=round(points[len(points) // 4][1], 1),
        MB_last=round(points[-1][1], 1),
        MB_per_100k=round(slope(points[len(points) // 4 :]), 3),
    )
    return 0 if have == wanted else 1


def recording_us(tasks: int = 5000, rounds: int = 30) -> float:
    """Return the least CPU of a task for making its records and packing them, in microseconds."""
    from taskq.brokers.base import Delivery
    from taskq.envelope import Envelope
    from taskq.message import Message
    from taskq.worker.endings import Ending
    from taskq.worker.held import Held
    from taskq.worker.report import Report

    report, best_s = Report("shop", "w1"), float("inf")
    for _ in range(rounds):
        batch = []
        for tag in range(tasks):
            message = Message("bench.noop", new_id(), b"")
            held = Held(tag, Delivery(tag, "default", message), Envelope(), None)
            held.received_us = time.time_ns() // 1000
            batch.append((held, Ending("SUCCESS", runtime_us=50)))
        start_s = time.process_time()
        for at in range(0, tasks, 100):
            report.ended(batch[at : at + 100])
        while report.recorder.take() is not None:
            pass
        best_s = min(best_s, time.process_time() - start_s)
    return best_s / tasks * 1e6


def stages(servers: Servers, name: str, **env: str) -> Stage:
    """Return taskq in a fresh namespace."""
    own = next(system for system in SYSTEMS if system.name == name)
    return Stage(own, servers, Path(sys.prefix), results=False, env=env)


def cost(options: argparse.Namespace) -> int:
    """Drain no-ops with events on, durable and off, in turns; CPU of the whole worker tree."""
    tell("cost of recording", us_per_task=round(recording_us(), 2))
    spent: dict[str, list[float]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="te") as name,
        Servers(Path(name)) as servers,
    ):
        for _ in range(options.rounds):
            for mode in ("off", "on", "durable"):
                stage = stages(servers, "taskq", BENCH_EVENTS=mode)
                stage.send("fill", count=options.tasks)
                row = stage.drain(options.tasks)
                spent.setdefault(mode, []).append(row["cpu_us"])
                tell(f"cost {mode}", us_per_task=row["cpu_us"], tasks_per_s=row["per_s"])
    off = spent.pop("off")
    for mode, values in spent.items():
        pairs = [round(value - base, 1) for value, base in zip(values, off, strict=True)]
        tell(f"cost {mode} - off", median_us=round(statistics.median(pairs), 1), pairs=pairs)
    return 0


def rpc(options: argparse.Namespace) -> int:
    """Time `app.rpc`: one call after the other, then a thousand at once."""
    with (
        tempfile.TemporaryDirectory(prefix="te") as name,
        Servers(Path(name)) as servers,
    ):
        for backend in ("taskq SQLite", "taskq"):
            one_backend(backend, stages(servers, backend), options.calls)
    return 0


def one_backend(backend: str, stage: Stage, calls: int) -> None:
    """Time the calls on one broker."""
    app = TaskQ("bench", broker=stage.broker)
    with stage.worker():
        for value in range(20):
            app.rpc("echo", (value,), timeout=60)
        waits = []
        for value in range(calls):
            start = time.perf_counter()
            if app.rpc("echo", (value,), timeout=60) != value:
                raise SystemExit("a wrong answer")
            waits.append((time.perf_counter() - start) * 1000)
        answers: dict[int, int] = {}

        def call(value: int) -> None:
            answers[value] = app.rpc("echo", (value,), timeout=120)

        threads = [threading.Thread(target=call, args=(value,)) for value in range(1000)]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        crowd_s = time.perf_counter() - start
    app.close()
    if answers != {value: value for value in range(1000)}:
        raise SystemExit("an answer is missing or reached the wrong caller")
    waits.sort()
    tell(
        f"rpc {backend}",
        p50_ms=round(statistics.median(waits), 2),
        p10_ms=round(waits[len(waits) // 10], 2),
        p99_ms=round(waits[int(len(waits) * 0.99)], 2),
        thousand_at_once_s=round(crowd_s, 2),
    )


def tell(case: str, **facts: Any) -> None:
    """Print one line of measurements."""
    print(case, " ".join(f"{name}={value}" for name, value in facts.items()), flush=True)


CASES = {"cost": cost, "bridge": bridge, "history": history, "rpc": rpc}


def main() -> int:
    """Run a case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", choices=list(CASES))
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--file", default="", help="where the history is written, to be kept")
    parser.add_argument("--place", choices=("rabbitmq", "sqlite"), default="rabbitmq")
    parser.add_argument("--tasks", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=1000)
    options = parser.parse_args()
    return CASES[options.case](options)


if __name__ == "__main__":
    sys.exit(main())
