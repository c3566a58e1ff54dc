"""`--burst`, profiles, queues, precedence, and starts that cannot succeed."""

import time
from pathlib import Path

import pytest
from fleet import POOLS, Fleet

from taskq import Signature, chain, outcome


@pytest.mark.parametrize("pool", POOLS)
def test_burst_works_until_nothing_is_left(fleet: Fleet, pool: str) -> None:
    """For cron and CI: run what is there, then end with 0."""
    handles = fleet.send_many("nap", 20, 0.01)
    (last,) = fleet.app.send(
        [chain(Signature("add", (1, 1)), Signature("add", (1,)), Signature("add", (1,)))]
    )

    worker = fleet.start("--burst", pool=pool, ready=False)

    assert worker.wait() == 0
    assert last.get(timeout=0) == 4
    assert [handle.state for handle in handles] == [outcome.SUCCESS] * 20


def test_burst_with_nothing_to_do_ends_soon(fleet: Fleet) -> None:
    """An empty queue is no reason to wait for something to come."""
    began = time.monotonic()

    worker = fleet.start("--burst", ready=False)

    assert worker.wait(timeout_s=15) == 0
    assert time.monotonic() - began < 10


def test_burst_waits_for_what_is_due_soon(fleet: Fleet) -> None:
    """A task delayed by a second, and a retry, belong to the work that was there."""
    delayed = fleet.send("nap", countdown=1)
    retried = fleet.send("flaky", 2)

    worker = fleet.start("--burst", ready=False)

    assert worker.wait() == 0
    assert [h.state for h in (delayed, retried)] == [outcome.SUCCESS] * 2


def test_burst_does_not_wait_for_tomorrow(sqlite_fleet: Fleet) -> None:
    """What is due in an hour is the next worker's."""
    later = sqlite_fleet.send("nap", countdown=3600)

    worker = sqlite_fleet.start("--burst", ready=False)

    assert worker.wait(timeout_s=15) == 0
    assert later.state == outcome.PENDING


def test_a_worker_consumes_the_queues_of_its_tasks(fleet: Fleet) -> None:
    """Nobody should have to list queues that the code names already."""
    worker = fleet.start()

    handles = [fleet.send("nap"), fleet.send("nap_elsewhere", queue="elsewhere")]

    fleet.settled(handles)
    assert "queues=default,elsewhere" in worker.log()


def test_a_worker_told_its_queues_takes_nothing_else(fleet: Fleet) -> None:
    """Machines for mail run mail."""
    fleet.start("-Q", "one,two")
    other = fleet.send("nap")

    handles = [fleet.send("nap", queue=name) for name in ("one", "two", "one")]

    fleet.settled(handles)
    assert fleet.ready() == 1
    assert not fleet.runs(other.id)


def test_both_of_two_busy_queues_are_served(fleet: Fleet) -> None:
    """A flood in one queue must not silence the other."""
    with fleet.app.batch():
        flood = [fleet.send("nap", 0.01, queue="one") for _ in range(300)]
        handles = [fleet.send("nap", 0.01, queue="two") for _ in range(5)]

    fleet.start("-Q", "two,one", slots=1)

    fleet.settled(handles)
    assert not all(handle.ready() for handle in flood)


def test_a_profile_sets_what_the_command_line_does_not(fleet: Fleet, tmp_path: Path) -> None:
    """Precedence: option over environment over profile over default."""
    (tmp_path / "mail.py").write_text(
        '"""Mail."""\n'
        "import os\n"
        'app = "work_app:app"\n'
        'queues = ("mail", "news")\n'
        "concurrency = 7\n"
        'pool = "thread"\n'
        'name = f"profile-{os.getpid()}"\n'
    )

    worker = fleet.start(
        "--profile", "mail.py", "-n", "option", pool="asyncio", slots=3, env={"TASKQ_QUEUES": "env"}
    )

    assert "worker option app=work pool=asyncio slots=3 queues=env" in worker.log()
    assert fleet.send("nap", 0, "x", queue="env").get(timeout=10) == "x"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("concurency = 3\n", "did you mean 'concurrency'"),
        ("concurrency = 'many'\n", "concurrency"),
        ("1 / 0\n", "ZeroDivisionError"),
    ],
)
def test_a_wrong_profile_is_an_error_that_says_what(
    sqlite_fleet: Fleet, tmp_path: Path, text: str, said: str
) -> None:
    """A misspelt setting that is passed over runs the wrong fleet for weeks."""
    (tmp_path / "bad.py").write_text(text)

    worker = sqlite_fleet.start("--profile", "bad.py", ready=False)

    assert worker.wait() == 78
    assert said in worker.log()
    assert "Traceback" not in worker.log()


@pytest.mark.parametrize("pool", ["process", "solo"])
def test_an_app_that_cannot_be_imported_says_where(
    sqlite_fleet: Fleet, tmp_path: Path, pool: str
) -> None:
    """Exit 78 with exception, file and line: a supervisor must not restart it in a loop."""
    (tmp_path / "broken.py").write_text("from taskq import TaskQ\n\napp = TaskQ(nowhere)\n")

    worker = sqlite_fleet.start(app="broken:app", pool=pool, ready=False)

    assert worker.wait() == 78
    log = worker.log()
    assert "NameError" in log
    assert "broken.py" in log
    assert "3" in log
    assert "Traceback" not in log


@pytest.mark.parametrize("pool", ["process", "solo"])
@pytest.mark.parametrize("app", ["nowhere:app", "work_app:nothing", "work_app:AT_ONCE"])
def test_an_app_that_is_not_there_is_a_configuration_error(
    sqlite_fleet: Fleet, pool: str, app: str
) -> None:
    worker = sqlite_fleet.start(app=app, pool=pool, ready=False)

    assert worker.wait() == 78
    assert "Traceback" not in worker.log()


def test_a_module_that_exits_while_it_is_imported_is_named(
    sqlite_fleet: Fleet, tmp_path: Path
) -> None:
    """`sys.exit()` at module level would otherwise end the template without a word."""
    (tmp_path / "leaves.py").write_text("import sys\nsys.exit(3)\n")

    worker = sqlite_fleet.start(app="leaves:app", ready=False)

    assert worker.wait() == 78
    assert "SystemExit" in worker.log()


@pytest.mark.parametrize("pool", ["process", "solo"])
def test_memory_urls_are_refused_by_worker_processes(sqlite_fleet: Fleet, pool: str) -> None:
    """It would consume queues that nobody else can see, and say that all is well."""
    worker = sqlite_fleet.start(
        pool=pool,
        env={"TASKQ_BROKER": "memory://", "TASKQ_RESULTS": "memory://"},
        ready=False,
    )

    assert worker.wait() == 78
    assert "memory://" in worker.log()
    assert "sqlite:///" in worker.log()
