"""`@app.on_dead_letter` in every pool: told of every letter, wherever it was made."""

import os
from pathlib import Path

import pytest
from fleet import POOLS, Fleet, until

from taskq.brokers import open_broker
from taskq.brokers.base import BrokerOptions, Outgoing
from taskq.message import Message

APP = """
import os, signal, time
from taskq import Reject, TaskQ

def note(*words):
    fd = os.open(os.environ["WORK_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, (" ".join(map(str, words)) + "\\n").encode())
    os.close(fd)

app = TaskQ("told")

@app.on_dead_letter
def broken(letter):
    raise RuntimeError("a listener that fails changes nothing")

@app.on_dead_letter
def tell(letter):
    note("dead", letter.id, letter.reason, letter.exception.type, letter.attempts, os.getpid())

@app.task(name="fail", max_retries=0)
def fail():
    raise ValueError("no")

@app.task(name="refuse")
def refuse():
    raise Reject("no")

@app.task(name="slow", max_retries=0)
def slow():
    note("slow")
    time.sleep(1)
    raise ValueError("late")

@app.task(name="die", max_retries=0)
def die():
    os.kill(os.getpid(), signal.SIGKILL)

@app.task(name="pid")
def pid():
    return os.getpid()
"""


@pytest.fixture
def told(fleet: Fleet, tmp_path: Path) -> Fleet:
    (tmp_path / "told.py").write_text(APP)
    return fleet


def notes(fleet: Fleet, task_id: str = "") -> list[list[str]]:
    try:
        found = [line.split() for line in fleet.runs_path.read_text().splitlines()]
    except FileNotFoundError:
        return []
    return [words for words in found if not task_id or (words[0] == "dead" and words[1] == task_id)]


def until_told(fleet: Fleet, task_id: str) -> list[str]:
    until(lambda: notes(fleet, task_id), f"the news of {task_id}", 60)
    (words,) = notes(fleet, task_id)
    return words


@pytest.mark.parametrize("pool", POOLS)
def test_a_listener_is_told_in_an_executor(told: Fleet, pool: str) -> None:
    """Somebody must know today, not when they look at the dead letters next week."""
    told.start(app="told:app", pool=pool, slots=1)
    pid = told.send("pid").get(timeout=60)

    failed, refused = told.send("fail"), told.send("refuse")

    assert until_told(told, failed.id)[2:] == ["failed", "ValueError", "1", str(pid)]
    assert until_told(told, refused.id)[2:4] == ["rejected", "Reject"]
    assert pid != os.getpid()
    assert len(told.until_letters(2, 60)) == 2


def test_letters_that_no_executor_made_are_told_too(told: Fleet) -> None:
    """A process that died, and a message that nobody can read: the hub knows, and runs no code."""
    worker = told.start(app="told:app", pool="process", slots=1)
    died = told.send("die")
    broker = open_broker(told.broker, BrokerOptions())
    bad = Message("fail", "bad-1", b"[]", {"retries": "many"})
    assert broker.publish([Outgoing("default", bad)], 30) == [None]
    broker.close()

    lost, malformed = until_told(told, died.id), until_told(told, "bad-1")

    assert (lost[2], malformed[2]) == ("worker_lost", "malformed")
    assert int(malformed[-1]) in worker.children()


@pytest.mark.parametrize("pool", ["process", "asyncio"])
def test_the_last_letter_before_a_warm_stop_is_told(told: Fleet, pool: str) -> None:
    """Each deploy stops all workers, and what fails then is what one wants to know."""
    worker = told.start(app="told:app", pool=pool, slots=1)
    handle = told.send("slow")
    until(lambda: ["slow"] in notes(told), "the task", 60)

    assert worker.term(60) == 0

    assert until_told(told, handle.id)[2] == "failed"
