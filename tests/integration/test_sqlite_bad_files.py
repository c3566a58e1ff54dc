"""Files that are not what they should be: a named error, in time, and the file unharmed."""

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from embedded_helpers import consuming, outgoing
from processes import wait_for

from taskq.brokers import open_broker
from taskq.brokers.base import BrokerOptions
from taskq.embedded import schema
from taskq.errors import ConfigError
from taskq.results import open_results

NOBODY = 65534


def foreign(path: Path) -> None:
    """Another program's database."""
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE customers (name)")
    other.execute("INSERT INTO customers VALUES ('Ada')")
    other.commit()
    other.close()


def marked(path: Path) -> None:
    """A database without tables yet that carries another program's mark."""
    other = sqlite3.connect(path)
    other.execute("PRAGMA application_id = 1234")
    other.close()


def newer(path: Path) -> None:
    """A file of a later taskq."""
    other = sqlite3.connect(path)
    other.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
    other.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    other.close()


def text(path: Path) -> None:
    """No database at all."""
    path.write_text("Dear diary, " * 100)


def directory(path: Path) -> None:
    """A directory."""
    path.mkdir()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (foreign, "another program's"),
        (marked, "another program's"),
        (newer, "newer taskq"),
        (text, "no SQLite database"),
        (directory, "is a directory"),
    ],
)
def test_a_wrong_file_is_named_and_left_alone(
    tmp_path: Path, spoil: Callable[[Path], None], words: str
) -> None:
    """`broker=` pointed at the application's own database must not add tables to it."""
    path = tmp_path / "app.db"
    spoil(path)
    before = path.read_bytes() if path.is_file() else None
    broker = open_broker(f"sqlite:///{path}", BrokerOptions())
    store = open_results(f"sqlite:///{path}")

    for act in (lambda: broker.declare(["q"]), lambda: store.fetch(["id"]), store.ping):
        with pytest.raises(ConfigError, match=words) as caught:
            act()
        assert str(path) in str(caught.value)
    (refused,) = broker.publish([outgoing()], 5.0)
    checks = broker.checks(["q"])
    with consuming(broker, ["q"]) as hub:
        wait_for(lambda: bool(hub.errors), 10, "the end of consuming")

    assert refused is not None
    assert refused.reason == "refused"
    assert words in refused.detail
    assert [(check.name, check.status) for check in checks] == [("broker.file", "failed")]
    assert isinstance(hub.errors[0], ConfigError)
    if before is not None:
        assert path.read_bytes() == before
        assert sorted(tmp_path.iterdir()) == [path]
    broker.close()
    store.close()


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    """SQLite itself says only `unable to open database file`."""
    broker = open_broker(f"sqlite:///{tmp_path}/none/q.db", BrokerOptions())

    with pytest.raises(ConfigError, match=f"no directory {tmp_path}/none"):
        broker.declare(["q"])
    broker.close()


SEND_AS_NOBODY = """
import os, sys
from taskq.brokers import open_broker
from taskq.brokers.base import BrokerOptions, Outgoing
from taskq.errors import ConfigError
from taskq.body import encode_call
from taskq.results import open_results
# Before the change of user: that one may not be able to read the library. Opens no file yet.
broker = open_broker(sys.argv[1], BrokerOptions())
store = open_results(sys.argv[1])
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(int(sys.argv[2]))
    os.setuid(int(sys.argv[2]))
error, = broker.publish([Outgoing("q", encode_call("t", "i", (), {}))], 5.0)
print(error.reason, error.detail)
try:
    store.fetch(["i"])
except ConfigError as error:
    print(error)
"""


@pytest.mark.parametrize("what", ["file", "directory"])
def test_what_cannot_be_written_is_named(what: str) -> None:
    """A file made by root and used by the service's user is the ordinary case."""
    # Not below the private directory of pytest, which another user may not enter at all.
    place = Path(os.path.realpath(tempfile.mkdtemp()))
    try:
        path = place / "q.db"
        url = f"sqlite:///{path}"
        maker = open_broker(url, BrokerOptions())
        maker.declare(["q"])
        maker.close()
        path.chmod(0o444 if what == "file" else 0o666)
        place.chmod(0o777 if what == "file" else 0o555)

        done = subprocess.run(
            [sys.executable, "-c", SEND_AS_NOBODY, url, str(NOBODY)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        place.chmod(0o755)
        shutil.rmtree(place)

    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith(f"refused {path}")
    assert "read-only for this user" in first
    assert "read-only for this user" in second


def test_a_full_disk_refuses_and_recovers(tmp_path: Path) -> None:
    """A send that is not on the disk must say so; when there is room, work goes on by itself."""
    path = tmp_path / "q.db"
    broker = open_broker(f"sqlite:///{path}", BrokerOptions())
    store = open_results(f"sqlite:///{path}")
    assert broker.publish([outgoing()], 5.0) == [None]
    limit_pages(broker, 1)
    errors = []
    while not errors:
        errors = [e for e in broker.publish([outgoing(args=("x" * 50_000,))], 5.0) if e]

    assert errors[0].reason == "refused"
    assert f"no space left for {path}" in errors[0].detail
    limit_pages(broker, 2**30)
    assert broker.publish([outgoing()], 5.0) == [None]
    with consuming(broker, ["q"]) as hub:
        hub.wait_for(2)
    broker.close()
    store.close()


def limit_pages(broker: object, pages: int) -> None:
    """Let SQLite itself report a full disk: no more than so many pages (at least those used)."""
    with broker._database.reading(5.0) as connection:  # type: ignore[attr-defined]
        connection.execute(f"PRAGMA max_page_count = {pages}")


def test_a_truly_full_file_system_refuses(tmp_path: Path) -> None:
    """The same on a file system of 1 MiB, where the kernel says it."""
    script = (
        f"mount -t tmpfs -o size=1m none {tmp_path} && exec {sys.executable} -c "
        f"'import sys; exec(sys.stdin.read())' sqlite:///{tmp_path}/q.db"
    )
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script],
        input=FILL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if "mount" in done.stderr or "unshare" in done.stderr:
        pytest.skip("may not mount a file system here")

    assert done.stdout.startswith("refused no space left for"), done.stderr


FILL = """
from taskq.brokers import open_broker
from taskq.brokers.base import BrokerOptions, Outgoing
from taskq.body import encode_call
broker = open_broker(sys.argv[1], BrokerOptions())
for n in range(1000):
    error, = broker.publish([Outgoing("q", encode_call("t", str(n), ("x" * 20000,), {}))], 5.0)
    if error:
        print(error.reason, error.detail)
        break
"""


def test_a_lock_held_by_a_shell_fails_sends_in_time_and_costs_no_lease(tmp_path: Path) -> None:
    """Someone's `BEGIN` in a shell outlasts the lease; living workers keep their tasks."""
    path = tmp_path / "q.db"
    options = BrokerOptions(lease_s=1.0, publish_timeout_s=0.5)
    broker = open_broker(f"sqlite:///{path}", options)
    batch = [outgoing() for _ in range(20)]
    assert broker.publish(batch, 5.0) == [None] * 20

    with consuming(broker, ["q"], 10) as one, consuming(broker, ["q"], 10) as two:
        wait_for(lambda: len(one.got) + len(two.got) == 20, 10, "all tasks in hands")
        shell = sqlite3.connect(path, isolation_level=None)
        shell.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        (error,) = broker.publish([outgoing()], 0.5)
        took_s = time.monotonic() - began
        # Settled during the lock: handed over, and done when the lock is gone.
        one.consumer.settle([delivery.receipt for delivery in one.got[:5]])
        wait_for(lambda: time.monotonic() - began > 3.5, 10, "three leases and a half")
        shell.execute("ROLLBACK")
        shell.close()
        two.consumer.settle([delivery.receipt for delivery in two.got])
        wait_for(
            lambda: broker.depths(["q"])["q"].unsettled == 15 - len(two.got), 10, "the settling"
        )
        one.consumer.settle([delivery.receipt for delivery in one.got])
        assert broker.depths(["q"])["q"].ready == 0
        assert (one.losses, two.losses) == (0, 0)
        assert len(one.got) + len(two.got) == 20

    assert error is not None
    assert error.reason == "unavailable"
    assert str(path) in error.detail
    assert took_s < 2
    assert broker.depths(["q"])["q"].unsettled == 0
    broker.close()
