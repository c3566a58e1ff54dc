"""Every example is run as its reader runs it: one command, a real worker, both kinds of broker."""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
from example_runs import ROOT, run_example
from kafka_server import GivenKafka, KafkaServer

EXAMPLES = [
    "quickstart.py",
    "retries.py",
    "delays.py",
    "cancelling.py",
    "async_tasks.py",
    "schedules.py",
    "limits.py",
    "priorities_and_order.py",
]
SHOP = "shop/main.py"
CHECKSUMS = "checksums/main.py"
STREAMS = "streams/main.py"

Servers = dict[str, str]
SERVERS = pytest.mark.parametrize("servers", ["embedded", "rabbitmq"], indirect=True)


@pytest.fixture
def servers(request: pytest.FixtureRequest) -> Servers:
    """The environment that makes an example use the embedded queue, or RabbitMQ and Redis."""
    if request.param == "embedded":
        return {}
    return {
        "TASKQ_BROKER": request.getfixturevalue("rabbitmq_url"),
        "TASKQ_RESULTS": request.getfixturevalue("redis_url"),
    }


@SERVERS
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_does_what_it_says(name: str, servers: Servers, tmp_path: Path) -> None:
    """It is what newcomers copy; each checks its own results and ends with 1 when one is off."""
    done = run_example(name, servers=servers, directory=tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "ERROR" not in done.stderr
    assert not list(tmp_path.iterdir()), "the example left something behind"


@SERVERS
def test_the_shop_takes_the_money_once(servers: Servers, tmp_path: Path) -> None:
    """Schedules, limits, uniqueness and idempotency together; it checks its own database."""
    done = run_example(SHOP, servers=servers, directory=tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "24 clicks, 12 payments" in done.stdout
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_stream_counts_every_task_once_and_warns(
    shared_kafka: KafkaServer | GivenKafka, tmp_path: Path
) -> None:
    """Worker, bridge and stream together; it compares the lines with what it sent."""
    pytest.importorskip("quixstreams")
    servers = {"TASKQ_KAFKA_BOOTSTRAP_SERVERS": shared_kafka.bootstrap}

    done = run_example(STREAMS, "--tasks", "200", servers=servers, directory=tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "200 sent, 200 started, 166 succeeded, 34 failed" in done.stdout
    assert "alert: streams.charge" in done.stdout
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_an_example_fails_when_its_worker_cannot_start(tmp_path: Path) -> None:
    """An example that exits 0 whatever happens shows nothing."""
    servers = {"TASKQ_BROKER": "sqlite:///taskq.db", "TASKQ_QUEUES": "not a name!"}

    done = run_example(CHECKSUMS, str(tmp_path), servers=servers, directory=tmp_path)

    assert done.returncode != 0, done.stdout


def measured_here(top: Path) -> list[dict[str, Any]]:
    """Compute what the example computes, another way: whole files, line by line."""
    rows = []
    for directory, _, names in os.walk(os.fsencode(top)):
        for name in names:
            path = os.path.join(directory, name)
            if os.path.islink(path) or not os.path.isfile(path):
                continue
            with open(path, "rb") as file:
                data = file.read()
                file.seek(0)
                lines = [len(line.removesuffix(b"\n")) for line in file]
            rows.append(
                {
                    "path": os.fsdecode(path),
                    "sha256": hashlib.sha256(data).hexdigest(),
                    "size": len(data),
                    "lines": len(lines),
                    "longest": max(lines, default=0),
                }
            )
    return sorted(rows, key=lambda row: str(row["path"]))


@pytest.fixture
def odd_tree(tmp_path: Path) -> Path:
    """Files of every kind and names of every kind, and what is no regular file."""
    top = tmp_path / "tree"
    for inner in ("__pycache__", "a b/c\nd"):
        (top / inner).mkdir(parents=True)
    contents = {
        b"empty": b"",
        b"newlines": b"\n\n\n",
        b"unfinished": b"one\ntwo\nthree is longest",
        b"dos": b"a\r\nbb\r\n",
        b"one long line": b"x" * 2_500_000,
        # Lines that lie across the chunks in which the example reads.
        b"chunks": (b"y" * 700_000 + b"\n") * 4 + b"end",
        b"exact chunk": b"z" * ((1 << 20) - 1) + b"\n",
        b"binary": bytes(range(256)) * 4096,
        b"__pycache__/m.cpython-311.pyc": b"\x00\x01\n\xff",
        b"a b/c\nd/new\nline": b"1\n",
        b"not-utf8-\xff\xfe": b"2",
        "sn\u00f6w \u2603 \U0001f600".encode(): b"3",
        b"-rf": b"4",
        b"'quote\" $HOME `x`": b"5",
        b".hidden": b"6",
        b"tab\tbell\x07\x1b[31m": b"7",
    }
    for name, data in contents.items():
        Path(os.fsdecode(os.path.join(os.fsencode(top), name))).write_bytes(data)
    (top / "link").symlink_to("unfinished")
    (top / "dangling").symlink_to("nowhere")
    (top / "loop").symlink_to(".")
    os.mkfifo(top / "fifo")
    return top


@SERVERS
def test_checksums_equal_the_direct_computation_on_odd_files(
    odd_tree: Path, servers: Servers, tmp_path: Path
) -> None:
    """Names that are no text, and content without line ends, are where a queue shows its seams."""
    words = (str(odd_tree), "--workers", "2", "--json", "--check")
    done = run_example(CHECKSUMS, *words, servers=servers, directory=tmp_path)

    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert len(rows) == 16
    assert rows == measured_here(odd_tree)
    assert f"{len(rows)}/{len(rows)} files" in done.stderr


def test_the_table_shows_every_file_on_a_line_of_its_own(odd_tree: Path, tmp_path: Path) -> None:
    """A name with a line end or a control character must not garble the table or the terminal."""
    done = run_example(CHECKSUMS, odd_tree.name, servers={}, directory=tmp_path)

    assert done.returncode == 0, done.stderr
    header, *lines, summary = done.stdout.splitlines()
    assert header.split() == ["sha256", "size", "lines", "longest", "path"]
    shown = [line.split(maxsplit=4) for line in lines]
    wanted = measured_here(odd_tree)
    assert [row[:4] for row in shown] == [
        [row["sha256"], *(str(row[key]) for key in ("size", "lines", "longest"))] for row in wanted
    ]
    assert all(row[4].startswith("tree/") for row in shown), "a path is shown as it was given"
    assert all(ch == "\n" or ch.isprintable() for ch in done.stdout)
    assert summary.startswith("16 files, ")


def standard_library(directory: Path) -> Path:
    """Return a snapshot of the running Python's own library, without what was installed to it.

    Other tests compile into its __pycache__ meanwhile, and a file that changes has no one sum.
    """
    top = directory / "stdlib"

    def take(source: str, target: str) -> None:
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)

    shutil.copytree(
        sysconfig.get_path("stdlib"),
        top,
        symlinks=True,
        ignore=shutil.ignore_patterns("site-packages", "dist-packages"),
        copy_function=take,
    )
    return top


@SERVERS
def test_checksums_of_the_standard_library_equal_the_direct_computation(
    servers: Servers, tmp_path: Path
) -> None:
    """Thousands of real files, each a task: none lost, none doubled, none wrong."""
    top = standard_library(tmp_path)

    done = run_example(CHECKSUMS, str(top), "--json", servers=servers, directory=tmp_path)

    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert len(rows) > 1000
    assert rows == measured_here(top)


@pytest.fixture
def checksum_task(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "checksums"))
    import tasks

    yield tasks.measure
    # Another example may have a module of that name.
    sys.modules.pop("tasks", None)


def test_a_file_that_cannot_be_read_is_an_answer(checksum_task: Any, tmp_path: Path) -> None:
    """A failure would be retried and buried, and would hide the other thousand files."""
    (tmp_path / "link").symlink_to("/etc/passwd")

    missing = checksum_task(os.fsencode(tmp_path / "missing"))
    link = checksum_task(os.fsencode(tmp_path / "link"))

    assert missing == {"error": "No such file or directory"}
    assert set(link) == {"error"}, "a link that appeared after the walk was followed"


@pytest.mark.skipif(
    os.geteuid() == 0 and not Path("/proc/sys/vm/compact_memory").exists(),
    reason="root reads everything",
)
def test_unreadable_files_are_named_and_the_others_are_done(tmp_path: Path) -> None:
    """One file without permission must not cost the whole run, nor pass in silence."""
    top = tmp_path / "tree"
    top.mkdir()
    (top / "good").write_bytes(b"1\n")
    (top / "bad").write_bytes(b"2\n")
    (top / "bad").chmod(0)
    bad = top / "bad"
    if os.geteuid() == 0:
        # Nobody can read this one, root included.
        top, bad = Path("/proc/sys/vm"), Path("/proc/sys/vm/compact_memory")

    done = run_example(CHECKSUMS, str(top), "--json", servers={}, directory=tmp_path)

    assert done.returncode == 1
    assert f"not read: {bad}: Permission denied" in done.stderr
    paths = [row["path"] for row in json.loads(done.stdout)]
    assert paths
    assert str(bad) not in paths


@pytest.mark.parametrize("words", [["/nonexistent"], [], [".", "--workers", "-1"]])
def test_a_wrong_command_line_is_a_usage_error(words: list[str], tmp_path: Path) -> None:
    """Nothing is started for a directory that is not there."""
    done = run_example(CHECKSUMS, *words, servers={}, directory=tmp_path)

    assert done.returncode == 2
    assert "usage:" in done.stderr


def test_checksums_without_a_results_store_say_so(tmp_path: Path) -> None:
    """A broker alone carries tasks and no answers; a traceback would not tell what to set."""
    (tmp_path / "file").write_text("x")
    servers = {"TASKQ_BROKER": f"sqlite:///{tmp_path}/queue.db"}

    done = run_example(CHECKSUMS, str(tmp_path), servers=servers, directory=tmp_path)

    assert done.returncode == 1
    assert "TASKQ_RESULTS" in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_stops_the_worker_too(tmp_path: Path) -> None:
    """A worker left behind would keep the terminal's children, the temporary queue, and a core."""
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(
            subprocess.Popen(
                [sys.executable, str(ROOT / "examples" / "delays.py")],
                cwd=tmp_path,
                # Unbuffered, or its first line comes when it is over.
                env={
                    **os.environ,
                    "PYTHONPATH": str(ROOT),
                    "PYTHONUNBUFFERED": "1",
                    "TMPDIR": str(tmp_path),
                },
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                # A run in the background of a script ignores Ctrl-C, and so would its children.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        )
        assert process.stdout is not None
        process.stdout.readline()

        process.send_signal(2)
        process.communicate(timeout=60)

    assert process.returncode != 0
    # The temporary directory goes after the worker ended.
    assert not list(tmp_path.iterdir())
