"""Outcomes on their way from executor to hub: none lost, none changed."""

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from taskq import outcome
from taskq.brokers.base import Outgoing
from taskq.message import Message
from taskq.results.base import Write
from taskq.worker.endings import Ending
from taskq.worker.outbox import Outbox, new_unpacker, pack_outcome, unpack_outcome


@pytest.fixture
def line() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    yield ours, theirs
    ours.close()
    theirs.close()


def frames(sock: socket.socket, until_tags: int) -> list[Any]:
    sock.settimeout(10)
    unpacker, found, tags = new_unpacker(), [], 0
    while tags < until_tags:
        unpacker.feed(sock.recv(1 << 16))
        for frame in unpacker:
            found.append(frame)
            tags += len(frame[1]) if frame[0] == "done" else 0
    return found


def test_an_ending_survives_the_frame() -> None:
    message = Message("t", "1", b"\x00\xff", {"retries": 1}, priority=3)
    ending = Ending(
        outcome.RETRY,
        [Write("1", b"record", 60)],
        [
            Outgoing("q", message, 5),
            Outgoing("q", message, dead=True),
            Outgoing("", message, topic="a"),
        ],
        12,
        "why",
    )

    tag, found = unpack_outcome(pack_outcome(8, ending))

    assert tag == 8
    assert found == ending


def test_outcomes_of_many_threads_all_arrive(line: tuple[socket.socket, socket.socket]) -> None:
    """One lost between two threads' sends would be a task that never ends."""
    theirs, ours = line
    outbox = Outbox(theirs)
    per_thread, threads = 3000, 4

    def work(first: int) -> None:
        for tag in range(first, first + per_thread):
            outbox.add(tag, Ending(outcome.SUCCESS))
            if tag % 3 == 0:
                outbox.flush()
        outbox.flush()

    workers = [
        threading.Thread(target=work, args=(number * per_thread,)) for number in range(threads)
    ]
    for each in workers:
        each.start()
    got = frames(ours, per_thread * threads)
    for each in workers:
        each.join()

    tags = [parts[0] for frame in got for parts in frame[1]]
    assert sorted(tags) == list(range(per_thread * threads))


def test_an_outcome_added_while_another_thread_sends_is_not_lost(
    line: tuple[socket.socket, socket.socket],
) -> None:
    """The list that is being sent must not be the one that is added to."""
    theirs, ours = line
    outbox = Outbox(theirs)
    packing, sent = threading.Event(), threading.Event()

    class Slow(Ending):
        @property
        def detail(self) -> str:  # type: ignore[override]
            packing.set()
            assert sent.wait(5)
            return ""

        @detail.setter
        def detail(self, value: str) -> None:
            return

    adding = threading.Thread(target=outbox.add, args=(2, Slow(outcome.SUCCESS)))
    outbox.add(1, Ending(outcome.SUCCESS))
    adding.start()
    assert packing.wait(5)
    outbox.flush()
    sent.set()
    adding.join()
    outbox.flush()

    got = frames(ours, 2)
    assert [parts[0] for frame in got for parts in frame[1]] == [1, 2]


def test_other_frames_come_after_the_outcomes_before_them(
    line: tuple[socket.socket, socket.socket],
) -> None:
    """`back` must not overtake the outcome of a task that it does not name."""
    theirs, ours = line
    outbox = Outbox(theirs)

    outbox.add(1, Ending(outcome.SUCCESS))
    outbox.send("back", [2, 3])

    theirs.close()
    unpacker = new_unpacker()
    while data := ours.recv(1 << 16):
        unpacker.feed(data)
    assert [frame[0] for frame in unpacker] == ["done", "back"]


def test_outcomes_wait_at_most_the_hold_time(
    line: tuple[socket.socket, socket.socket],
) -> None:
    """The first leaves at once; what follows within a millisecond goes together."""
    theirs, ours = line
    outbox = Outbox(theirs)

    outbox.add(1, Ending(outcome.SUCCESS))
    outbox.flush_if_due()

    assert [parts[0] for frame in frames(ours, 1) for parts in frame[1]] == [1]
