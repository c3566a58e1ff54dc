"""A results store of each kind under threads, processes and forks."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from forks import in_child
from results_records import new_id, write

from taskq.outcome import TERMINAL
from taskq.results.base import ResultStore, decode_record

pytest_plugins = ("results_fixtures",)

FINAL = sorted(TERMINAL)


def state(store: ResultStore, task_id: str) -> str | None:
    data = store.fetch([task_id])[0]
    return None if data is None else decode_record(data).state


def test_threads_share_one_store(store: ResultStore) -> None:
    """Eight threads race for the same tasks; each task ends once, whoever wins."""
    ids = [new_id() for _ in range(200)]
    states = ["SUCCESS", "FAILURE", "CANCELLED", "EXPIRED"] * 2

    def race(name: str) -> list[bool]:
        won: list[bool] = []
        for at in range(0, len(ids), 20):
            won += store.store([write(task_id, name) for task_id in ids[at : at + 20]])
        return won

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(race, states))

    assert [sum(column) for column in zip(*outcomes, strict=True)] == [1] * len(ids)
    for n, data in enumerate(store.fetch(ids)):
        winner = next(i for i, won in enumerate(outcomes) if won[n])
        assert data is not None
        assert decode_record(data).state == states[winner]


RACER = """
import sys
from taskq.results import open_results
from taskq.results.base import Record, Write, encode_record
url, state, *ids = sys.argv[1:]
store = open_results(url, 20.0)
sys.stdin.readline()
for task_id in ids:
    won, = store.store([Write(task_id, encode_record(Record(state)), 60)])
    count, = store.count_starts([task_id], 60)
    print(int(won), count)
store.close()
"""


def test_processes_share_one_store(results_url: str) -> None:
    """Four processes race for the same tasks and count together."""
    if results_url.startswith("memory:"):
        pytest.skip("a database in memory belongs to one process")
    ids = [new_id() for _ in range(60)]
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, results_url, name, *ids],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in FINAL
    ]
    outputs = []
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    for racer in racers:
        out, _ = racer.communicate(timeout=60)
        assert racer.returncode == 0
        outputs.append([tuple(map(int, line.split())) for line in out.splitlines()])

    for column in zip(*outputs, strict=True):
        assert sum(won for won, _ in column) == 1
        assert sorted(count for _, count in column) == [1, 2, 3, 4]


def test_a_forked_child_works_and_leaves_its_parent_alone(
    store: ResultStore, results_url: str
) -> None:
    """Web servers fork after the app was used; a shared connection would mix up answers."""
    task_id, mine = new_id(), new_id()
    store.store([write(task_id, "STARTED")])
    woken = threading.Event()
    store.watch(task_id, lambda data: woken.set())

    def child() -> None:
        store.store([write(mine, "SUCCESS")])
        assert state(store, mine) == "SUCCESS"
        seen = threading.Event()
        store.watch(mine, lambda data: seen.set())
        assert seen.wait(10)
        if not results_url.startswith("memory:"):
            assert store.store([write(task_id, "SUCCESS")]) == [True]

    in_child(child)

    if results_url.startswith("memory:"):
        store.store([write(task_id, "SUCCESS")])
    assert woken.wait(10)
    assert state(store, task_id) == "SUCCESS"


def test_forks_beside_busy_threads_do_not_hang(store: ResultStore) -> None:
    """A thread inside the driver at the moment of the fork must leave no lock behind."""
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            store.store([write(new_id(), "SUCCESS")])

    threads = [threading.Thread(target=busy) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(10):
            in_child(lambda: store.store([write(new_id(), "SUCCESS")]))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
