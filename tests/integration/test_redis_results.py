"""The Redis store against faults and settings that only Redis has."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from processes import wait_for
from servers import RedisServer

from taskq import outcome
from taskq.errors import ResultsUnavailable
from taskq.results.base import Record, Write, encode_record, is_terminal
from taskq.results.redis import RedisResults


@pytest.fixture
def store(redis_url: str) -> Iterator[RedisResults]:
    with closing(RedisResults(redis_url)) as opened:
        yield opened


@pytest.fixture
def private_store(private_redis: RedisServer) -> Iterator[RedisResults]:
    with closing(RedisResults(private_redis.url, timeout_s=1.0)) as opened:
        yield opened


def success(task_id: str, worker: str = "", attempt: int = 0) -> Write:
    record = Record(outcome.SUCCESS, attempt, worker=worker)
    return Write(task_id, encode_record(record), 60)


def threads_and_files() -> tuple[int, int]:
    return threading.active_count(), len(os.listdir("/dev/fd"))


def assert_nothing_grew(before: tuple[int, int]) -> None:
    threads, files = threads_and_files()
    assert threads <= before[0]
    # The pool may have opened what it is allowed to.
    assert files <= before[1] + 8


def test_eight_writers_agree_on_one_final_record(store: RedisResults) -> None:
    """Two workers that end the same task must not both believe that theirs is the result."""
    ids = [f"race-{number}" for number in range(200)]
    start = threading.Barrier(8)

    def write(number: int) -> list[bool]:
        writes = [success(task_id, worker=f"w{number}") for task_id in ids]
        start.wait(10)
        return store.store(writes)

    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(write, range(8)))

    assert [sum(flags) for flags in zip(*taken, strict=True)] == [1] * len(ids)
    for index, record in enumerate(store.fetch(ids)):
        (winner,) = (number for number in range(8) if taken[number][index])
        assert record == success("", worker=f"w{winner}").record


def test_attempts_are_compared_as_numbers(store: RedisResults) -> None:
    """Lua compares strings by the server's locale, where byte 255 may come before byte 1."""
    later = encode_record(Record(outcome.RETRY, attempt=255))
    earlier = encode_record(Record(outcome.RETRY, attempt=1))
    store.store([Write("a", later, 60)])

    assert store.store([Write("a", earlier, 60)]) == [False]
    assert store.store([Write("a", encode_record(Record(outcome.RETRY, 256)), 60)]) == [True]


def test_one_batch_may_carry_several_records_of_a_task(store: RedisResults) -> None:
    """STARTED and SUCCESS of a short task are stored together; a cancel may be in there too."""
    started = Write("a", encode_record(Record(outcome.STARTED)), 60)
    cancelled = Write("a", encode_record(Record(outcome.CANCELLED)), 60)

    assert store.store([started, success("a"), cancelled]) == [True, True, False]
    assert store.fetch(["a"]) == [success("a").record]


def test_large_batches_and_large_records_go_through(store: RedisResults) -> None:
    """Lua takes some 8,000 keys, and a connection 512 MiB, in one command."""
    many = [success(f"many-{number}") for number in range(12_000)]
    body = encode_record(Record(outcome.SUCCESS, value=b"x" * 5_000_000))
    large = [Write(f"large-{number}", body, 60) for number in range(5)]

    assert all(store.store(many + large))
    found = store.fetch([write.task_id for write in many + large])
    assert found == [write.record for write in many + large]
    assert store.count_starts([write.task_id for write in many], 60) == [1] * len(many)
    store.forget([write.task_id for write in many])
    assert store.fetch([write.task_id for write in many]) == [None] * len(many)


def test_scripts_are_sent_again_when_redis_forgot_them(
    private_redis: RedisServer, private_store: RedisResults
) -> None:
    """A restart, a failover or SCRIPT FLUSH empties the script cache."""
    private_store.store([success("a")])
    private_redis.ctl("SCRIPT", "FLUSH")

    assert private_store.store([success("a", worker="other"), success("b")]) == [False, True]
    private_redis.ctl("SCRIPT", "FLUSH")
    private_store.mark_pending(["c"], 60)
    private_redis.ctl("SCRIPT", "FLUSH")
    assert private_store.count_starts(["c"], 60) == [1]


def test_a_key_of_another_program_is_replaced(redis_url: str, shared_redis: RedisServer) -> None:
    """One key of the wrong type must not fail the other 199 results of a batch."""
    shared_redis.ctl("RPUSH", "taskq:result:a", "x", url=redis_url)

    with closing(RedisResults(redis_url)) as store:
        assert store.fetch(["a"]) == [None]
        assert store.store([success("a"), success("b")]) == [True, True]
        assert store.fetch(["a", "b"]) == [success("a").record, success("b").record]


def test_a_restart_between_two_calls_is_not_an_error(
    private_redis: RedisServer, private_store: RedisResults
) -> None:
    """Idle connections of the pool are dead after a restart; that is no caller's concern."""
    private_store.store([success("a")])

    private_redis.kill()
    private_redis.start()

    assert private_store.fetch(["a"]) == [success("a").record]
    assert private_store.store([success("b")]) == [True]


def test_a_batch_whose_answer_was_lost_counts_as_taken(
    redis_url: str, shared_redis: RedisServer
) -> None:
    """Told that its own record was there before, a worker would take itself for a duplicate."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)

        def relay_and_cut(cut: bool) -> None:
            with closing(listener.accept()[0]) as client:
                place = ("127.0.0.1", shared_redis.port)
                with closing(socket.create_connection(place, 5)) as server:
                    while data := client.recv(65536):
                        server.sendall(data)
                        answer = server.recv(65536)
                        if cut and b"EVALSHA" in data:
                            return
                        client.sendall(answer)

        def relay() -> None:
            relay_and_cut(cut=True)
            relay_and_cut(cut=False)

        relaying = threading.Thread(target=relay)
        relaying.start()
        database = redis_url.rpartition("/")[2]
        url = f"redis://127.0.0.1:{listener.getsockname()[1]}/{database}"
        with closing(RedisResults(redis_url)) as direct, closing(RedisResults(url)) as store:
            direct.store([success("done", worker="other")])

            assert store.store([success("a"), success("done")]) == [True, False]
            assert direct.fetch(["a"]) == [success("a").record]
        relaying.join(10)


@pytest.mark.parametrize(("count", "within_s"), [(1_000, 2.0), (20_000, 5.0)])
def test_waiters_ride_out_a_crash_of_redis(
    private_redis: RedisServer, private_store: RedisResults, count: int, within_s: float
) -> None:
    """Waiting on a subscription that died with the server is the classic hang."""
    ids = [f"task-{number}" for number in range(count)]
    seen: dict[str, bytes] = {}
    for task_id in ids:
        private_store.watch(task_id, lambda record, task_id=task_id: seen.update({task_id: record}))
    wait_for(lambda: subscribers(private_redis) == count, 20, "the subscriptions")
    before = threads_and_files()

    private_redis.kill()
    with pytest.raises(ResultsUnavailable):
        private_store.fetch(["x"])
    private_redis.start()
    recovered = time.monotonic()
    assert all(private_store.store([success(task_id) for task_id in ids]))
    wait_for(lambda: len(seen) == count, 10, "the last call back")

    assert time.monotonic() - recovered < within_s
    assert all(record == success("").record for record in seen.values())
    wait_for(lambda: subscribers(private_redis) == 0, 5, "the end of the subscriptions")
    assert_nothing_grew(before)


def subscribers(server: RedisServer) -> int:
    return len(server.ctl("PUBSUB", "CHANNELS"))


def test_a_hundred_lost_connections_leave_nothing_behind(
    private_redis: RedisServer, private_store: RedisResults
) -> None:
    """Each reconnect that kept a socket or a thread would end a long-lived web process."""
    seen: list[bytes] = []
    private_store.watch("a", seen.append)
    wait_for(lambda: subscribers(private_redis) == 1, 5, "the subscription")
    before = threads_and_files()

    for _ in range(100):
        private_redis.ctl("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        private_redis.ctl("CLIENT", "KILL", "TYPE", "pubsub")
        private_store.fetch(["a"])
    wait_for(lambda: subscribers(private_redis) == 1, 5, "the subscription")
    private_store.store([success("a")])

    wait_for(lambda: len(seen) == 1, 3, "the call back")
    assert_nothing_grew(before)


def test_a_result_whose_announcement_was_lost_is_found_by_reading(
    private_redis: RedisServer, private_store: RedisResults
) -> None:
    """Announcements are sent once and to who is there; a paused network loses them silently."""
    seen: list[bytes] = []
    private_store.watch("a", seen.append)
    wait_for(lambda: subscribers(private_redis) == 1, 5, "the subscription")

    private_redis.ctl("SET", "taskq:result:a", success("a").record)

    wait_for(lambda: bool(seen), 4, "the call back")
    assert is_terminal(seen[0])


def test_an_announcement_of_another_database_wakes_nobody(
    redis_url: str, shared_redis: RedisServer
) -> None:
    """Channels of Redis know no database: the same id in another one is another task."""
    other_url = f"redis://127.0.0.1:{shared_redis.port}/0?prefix=taskq"
    seen: list[bytes] = []
    with closing(RedisResults(redis_url)) as store, closing(RedisResults(other_url)) as other:
        store.watch("same-id", seen.append)
        wait_for(
            lambda: shared_redis.ctl("PUBSUB", "NUMSUB", "taskq:result:same-id")[1] == 1,
            5,
            "the subscription",
        )
        other.store([success("same-id", worker="other")])
        store.store([success("same-id", worker="ours")])
        wait_for(lambda: bool(seen), 5, "the call back")
        other.forget(["same-id"])

    assert seen == [success("", worker="ours").record]


def test_a_forked_child_has_connections_and_waiters_of_its_own(store: RedisResults) -> None:
    """A child that used its parent's sockets would read the parent's replies."""
    parent: list[bytes] = []
    store.watch("later", parent.append)
    store.fetch(["x"])

    pid = os.fork()
    if pid == 0:
        code = 1
        # Whatever happens, the child must not go on as a second pytest.
        try:
            seen = threading.Event()
            store.watch("child", lambda record: seen.set())
            store.store([success("child")])
            code = 0 if seen.wait(5) and store.fetch(["later"]) == [None] else 1
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    store.store([success("later")])

    assert os.waitstatus_to_exitcode(status) == 0
    wait_for(lambda: bool(parent), 3, "the parent's call back")


def test_many_threads_share_few_connections(private_redis: RedisServer) -> None:
    """A web server with 100 threads must not hold 100 connections to Redis."""
    url = f"{private_redis.url}?max_connections=3"
    with closing(RedisResults(url)) as store, ThreadPoolExecutor(30) as pool:
        list(pool.map(lambda number: store.fetch([str(number)]), range(600)))
        clients = private_redis.ctl("CLIENT", "LIST", "TYPE", "normal")

    # One is the question's own.
    assert len(clients.splitlines()) <= 3 + 1
