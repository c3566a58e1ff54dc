"""Server processes of tests: ports, pid files, and their end, also after an interrupted run."""

import atexit
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

# Below the range of outgoing connections: a client that keeps dialling the port of a server that
# was killed would otherwise get that port for itself, connect to itself, and block the restart.
_PORTS = range(20_000, 30_000)
_children: dict[int, subprocess.Popen[bytes]] = {}


@atexit.register
def _leave_children() -> None:
    # A server that all workers share outlives the one that started it; without a return code
    # Popen would warn of that.
    for process in _children.values():
        process.returncode = 0


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 on which nothing listens."""
    for _ in range(200):
        port = random.choice(_PORTS)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port on 127.0.0.1 in 200 tries")


def wait_for(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Poll `condition` until it holds; `TimeoutError` naming `what` after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not happen within {timeout_s:g} s")
        time.sleep(0.02)


def birth(pid: int) -> str:
    """Return what tells a process from a later one of the same pid; empty when there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        if Path("/proc/self").exists():
            return ""
        done = subprocess.run(
            ["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
        )
        return done.stdout.strip().replace(" ", "_")
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def spawn(argv: Sequence[str], env: Mapping[str, str], directory: Path, name: str) -> int:
    """Start a server in a session of its own, note its pid in `directory`, and return it."""
    with (directory / f"{name}.out").open("ab") as output:
        process = subprocess.Popen(
            argv,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    _children[process.pid] = process
    (directory / f"{name}.pid").write_text(f"{process.pid} {birth(process.pid)}")
    return process.pid


def running(directory: Path, name: str) -> int | None:
    """Return the pid of the server noted in `directory`, or None when it has ended."""
    try:
        pid_text, _, born = (directory / f"{name}.pid").read_text().partition(" ")
    except OSError:
        return None
    pid = int(pid_text)
    child = _children.get(pid)
    if child is not None and child.poll() is not None:
        return None
    return pid if born and birth(pid) == born else None


def end(directory: Path, name: str, signal_number: int, timeout_s: float = 30.0) -> None:
    """Signal a server and wait for its end; SIGKILL to its whole session when it takes too long."""
    pid = running(directory, name)
    if pid is not None:
        os.kill(pid, signal_number)
        # One that is stopped (SIGSTOP) would take notice of nothing else.
        os.kill(pid, signal.SIGCONT)
        try:
            wait_for(lambda: running(directory, name) is None, timeout_s, f"the end of {name}")
        except TimeoutError:
            os.killpg(pid, signal.SIGKILL)
            wait_for(lambda: running(directory, name) is None, 10, f"the end of {name}")
    if child := _children.pop(pid or 0, None):
        child.wait()
    (directory / f"{name}.pid").unlink(missing_ok=True)


def tail(directory: Path, name: str) -> str:
    """Return the last lines a server wrote; for the message of a failed start."""
    try:
        return (directory / f"{name}.out").read_text(errors="replace")[-2000:]
    except OSError:
        return ""


def run_directory() -> Path:
    """Make the directory of this test run, after ending what dead runs have left.

    It carries the pid and birth of the process that owns the run, so that the next run can tell a
    directory in use from one of a run that was killed.
    """
    root = Path(tempfile.gettempdir()) / f"taskq-tests-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    if root.stat().st_uid != os.getuid():
        raise RuntimeError(f"{root} belongs to another user: remove it, or set TMPDIR")
    for run in root.glob("*-*"):
        pid, _, born = run.name.partition("-")
        if not (pid.isdecimal() and birth(int(pid)) == born):
            remove_run(run)
    root.mkdir(mode=0o700, exist_ok=True)
    run = root / f"{os.getpid()}-{birth(os.getpid())}"
    run.mkdir()
    # What pytest's tmp_path gives lies elsewhere, as a Unix socket's path may have only about 100
    # characters; it goes with the run.
    temporary = tempfile.mkdtemp(prefix="tq")
    (run / "temporary").write_text(temporary)
    os.environ["PYTEST_DEBUG_TEMPROOT"] = temporary
    return run


def remove_run(run: Path) -> None:
    """End every server of a run by its pid file and remove the run's directory."""
    for pid_file in run.rglob("*.pid"):
        end(pid_file.parent, pid_file.stem, signal.SIGKILL)
    # What could not lie inside the run's directory.
    for pointer in [run / "temporary", *run.rglob("outside")]:
        with contextlib.suppress(OSError):
            shutil.rmtree(pointer.read_text(), ignore_errors=True)
    shutil.rmtree(run, ignore_errors=True)
    # Another run may be using it.
    with contextlib.suppress(OSError):
        run.parent.rmdir()
