"""`taskq schedules`, `taskq scheduler` and `taskq worker --with-scheduler` as a user meets them."""

import contextlib
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli_user import TIMEOUT_S, User, until
from processes import free_port

from taskq import clock
from taskq.schedules.store import open_schedules

FIELDS = {
    "name", "state", "trouble", "task", "args", "kwargs", "catch_up", "max_age_s", "overlap",
    "max_runs", "source", "schedule", "text", "next_at", "last_at", "last_id", "fired", "skipped",
    "missed", "why", "starting_at", "until",
}  # fmt: skip
TIMED = """
from shop import add, app
from taskq import crontab, every

app.schedules.add("often", add, every(0.5), (1, 2))
app.schedules.add("nightly", "shop.add", crontab("30 2 * * *", tz="Europe/Berlin"), (3, 4))
"""


@pytest.fixture
def user(tmp_path: Path) -> User:
    """A user with an app that declares two schedules."""
    made = User(tmp_path, TASKQ_APP="timed:app")
    (tmp_path / "timed.py").write_text(TIMED)
    return made


@contextlib.contextmanager
def scheduler(user: User, *words: str) -> Iterator["subprocess.Popen[str]"]:
    """Run a scheduler beside; it must end well."""
    log = user.directory / "scheduler.log"
    with log.open("a") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "taskq", "scheduler", *words],
            cwd=user.directory,
            env=user.environment(),
            stdin=subprocess.DEVNULL,
            stderr=stream,
            text=True,
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(TIMEOUT_S)
        finally:
            process.kill()
    assert process.returncode == 0, log.read_text()


def listed(user: User) -> dict[str, dict[str, object]]:
    return {row["name"]: row for row in user.run("schedules", "ls", "--json").json()}


def test_schedules_from_the_deploy_to_the_removal(user: User) -> None:
    """The whole life of a declared and of a dynamic schedule, at the shell."""
    assert "no schedules" in user.run("schedules", "ls").stdout
    (user.directory / "taskq.toml").write_text(
        '[schedules.cleanup]\ntask = "shop.add"\nargs = [5, 6]\nevery = "15m"\noverlap = "skip"\n'
    )
    port = free_port()
    with scheduler(user, "--health-port", str(port)):
        until(lambda: "often" in listed(user), "the deploy")
        until(lambda: int(str(listed(user)["often"]["fired"])) >= 2, "ticks")
        assert fetch(port, "/livez") == (200, "ok\n")
        assert fetch(port, "/readyz") == (200, "ok\n")
        assert 'taskq_scheduler_ticks_total{kind="fired"}' in fetch(port, "/metrics")[1]
        assert fetch(port, "/nowhere")[0] == 404

        rows = listed(user)
        assert sorted(rows) == ["cleanup", "nightly", "often"]
        assert all(set(row) == FIELDS for row in rows.values())
        assert (rows["cleanup"]["source"], rows["cleanup"]["text"]) == ("file", "every 15 minutes")
        assert rows["nightly"]["schedule"] == {"crontab": "30 2 * * *", "tz": "Europe/Berlin"}

        added = user.run(
            "schedules", "add", "mine", "shop.add", "--every", "1h", "--args", "[1, 1]", "--json"
        ).json()
        assert (added["state"], added["source"]) == ("active", "dynamic")
        user.run("schedules", "pause", "mine", "--why", "repairs")
        assert (listed(user)["mine"]["state"], listed(user)["mine"]["why"]) == ("paused", "repairs")
        user.run("schedules", "resume", "mine")
        run = user.run("schedules", "run", "mine", "--json").json()
        assert run["name"] == "mine"
        assert user.run("result", run["id"], "--json").json()["state"] == "PENDING"
        user.run("schedules", "remove", "mine", code=2)
        assert user.run("schedules", "remove", "mine", "--yes", "--json").json()["removed"]

    assert "mine" not in listed(user)


def fetch(port: int, path: str) -> tuple[int, str]:
    url = f"http://127.0.0.1:{port}{path}"
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.timeout(400)
@pytest.mark.parametrize("servers", ["embedded", "rabbitmq"])
def test_what_became_of_ticks_is_seen_in_the_tail(
    user: User, servers: str, request: pytest.FixtureRequest
) -> None:
    """Fired, skipped and missed ones, as they happen, by schedule and reason."""
    if servers == "rabbitmq":
        user.variables["TASKQ_BROKER"] = request.getfixturevalue("rabbitmq_url")
        user.variables["TASKQ_RESULTS"] = request.getfixturevalue("redis_url")
    with (user.directory / "timed.py").open("a") as stream:
        stream.write('app.schedules.add("piling", add, every(0.5), (1, 2), overlap="skip")\n')
    tail = ("events", "tail", "--count", "1", "--type")
    with scheduler(user):
        until(lambda: "piling" in listed(user), "the deploy", TIMEOUT_S)
        fired = user.run(*tail, "schedule.fired", "--json").json()
        # No worker runs, so the first run never ends.
        skipped = user.run(*tail, "schedule.skipped").stdout

    assert fired["type"] == "io.taskq.schedule.fired"
    assert fired["data"]["schedule"] in ("often", "piling")
    assert fired["data"]["due_ms"] % 500 == 0
    state = user.run("result", fired["data"]["task_id"], "--json").json()["state"]
    assert state == "PENDING", "the tick's task"
    assert "schedule=piling" in skipped
    assert "reason=the run before has not ended" in skipped

    out, log = user.directory / "tail.out", user.directory / "scheduler.log"
    with out.open("w") as stream:
        watch = subprocess.Popen(
            [sys.executable, "-m", "taskq", *tail, "schedule.missed"],
            cwd=user.directory,
            env=user.environment(),
            stdin=subprocess.DEVNULL,
            stdout=stream,
        )
    try:
        # Until the tail is there: an event is told once.
        for _ in range(10):
            if watch.poll() is None:
                make_late(user, "often", 100)
                leads = log.read_text().count("leading token=")
                with scheduler(user):
                    until(
                        lambda leads=leads: log.read_text().count("leading token=") > leads,
                        "a leader",
                        TIMEOUT_S,
                    )
                    wait_for(lambda: watch.poll() is not None, 6)
    finally:
        watch.kill()
        watch.wait()
    assert "schedule=often" in out.read_text()
    assert "count=" in out.read_text()


def make_late(user: User, name: str, by_s: float) -> None:
    """Let a schedule have been dealt with so long ago, as if no scheduler had run since."""
    env = user.environment()
    url = env.get("TASKQ_RESULTS") or f"sqlite:///{user.directory}/taskq.db"
    store = open_schedules(url, "shop", 30)
    try:
        (row,) = store.rows([name])
        assert row is not None
        store.remove(name)
        store.restore([row._replace(cursor_ms=clock.now_ms() - round(by_s * 1000))], [name])
    finally:
        store.close()


def wait_for(condition: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)


def test_a_preview_says_when_in_words(user: User) -> None:
    """Before it is written anywhere."""
    shown = user.run(
        *("schedules", "preview", "--crontab", "30 2 * * *", "--tz", "Europe/Berlin"),
        *("--after", "2026-10-24T12:00:00+00:00", "-n", "2", "--json"),
    ).json()

    assert shown["text"] == "at 02:30, every day, Europe/Berlin"
    assert shown["ticks"] == ["2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"]
    assert shown["notes"][0] == (
        "25 October 2026: the clocks show 02:00 to 03:00 twice: 02:30 only the first time"
    )
    text = user.run("schedules", "preview", "nightly").stdout
    assert text.startswith("at 02:30, every day, Europe/Berlin\n")
    assert "note: " in text


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["schedules", "preview", "--crontab", "0 0 30 2 *"], 78, "never fires"),
        (["schedules", "preview", "--crontab", "0 0 * * *", "--tz", "Mars"], 78, "time zone"),
        (["schedules", "preview", "--every", "0"], 78, "every"),
        (["schedules", "preview"], 2, "exactly one"),
        (["schedules", "preview", "nobody"], 78, "no schedule 'nobody'"),
        (["schedules", "add", "x", "shop.ad", "--every", "5"], 78, "did you mean 'shop.add'"),
        (["schedules", "add", "x", "shop.add", "--every", "5"], 78, "cannot be sent"),
        (["schedules", "run", "nobody"], 78, "no schedule"),
        (["scheduler", "--lease", "0"], 78, "lease"),
        (["scheduler", "-A", "nowhere:app"], 78, "nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistakes_are_one_line_with_their_exit_code(
    user: User, words: list[str], code: int, said: str
) -> None:
    assert said in user.run(*words, code=code).stderr


def test_a_scheduler_refuses_what_cannot_be(user: User) -> None:
    """Two of one name, a task that is not there, a store that is not there."""
    (user.directory / "taskq.toml").write_text(
        '[schedules.often]\ntask = "shop.add"\nargs = [5, 6]\nevery = 60\n'
    )
    assert "declared twice" in user.run("scheduler", code=78).stderr
    (user.directory / "taskq.toml").write_text('[schedules.x]\ntask = "shop.no"\nevery = 60\n')
    assert "'shop.no' is not registered" in user.run("scheduler", code=78).stderr
    (user.directory / "taskq.toml").write_text('[schedules.x]\ntask = "shop.no"\nevry = 60\n')
    assert "did you mean 'every'" in user.run("scheduler", code=78).stderr
    (user.directory / "taskq.toml").unlink()
    off = {"TASKQ_BROKER": "amqp://127.0.0.1:1//", "TASKQ_RESULTS": "off"}
    assert "need a store" in user.run("scheduler", code=78, env=off).stderr


def test_a_worker_brings_its_scheduler_along_and_takes_it_with_it(user: User) -> None:
    """One process to start, and none left behind."""
    log = user.directory / "worker.log"
    with user.worker("-A", "timed:app", "--with-scheduler", "-P", "thread"):
        until(lambda: "leading token=" in log.read_text(), f"a scheduler: {log.read_text()}", 60)
        last = until(lambda: listed(user)["often"]["last_id"], "a tick", 60)
        done = user.run("result", str(last), "--wait", "--json").json()
        assert (done["state"], done["result"]) == ("SUCCESS", 3)

    assert log.read_text().count("stopped {") == 2, "the worker's line, and the scheduler's"
