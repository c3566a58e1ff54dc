"""How deep the library stands above the user's code: what a traceback and a profile show."""

import os
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from taskq import TaskQ

ROOT = Path(__file__).parents[1]
MAX_FRAMES = 4
TIMEOUT_S = 60

APP = """
import sys

from taskq import TaskQ

app = TaskQ("depth")


def stack():
    frame, found = sys._getframe(2), []
    while frame is not None:
        found.append([frame.f_globals.get("__name__", ""), frame.f_code.co_name])
        frame = frame.f_back
    return found


@app.task
def plain():
    return stack()


@app.task
async def coroutine():
    return stack()
"""


def own(module: Any) -> bool:
    return str(module).split(".")[0] == "taskq"


def test_few_frames_lie_between_delay_and_the_driver() -> None:
    """Each layer on the way costs every send, and hides the two that matter in a traceback."""
    app = TaskQ("depth", broker="memory://", results="memory://")

    @app.task
    def add(x: int, y: int) -> int:
        return x + y

    add.delay(1, 2)  # opens the broker
    seen: list[list[str]] = []

    def profile(frame: FrameType, event: str, _argument: object) -> None:
        module = str(frame.f_globals.get("__name__"))
        entered = event == "call" and frame.f_code.co_name == "submit"
        if entered and module.startswith("taskq.brokers.") and not seen:
            chain, outer = [], frame.f_back
            while outer is not None:
                chain.append((str(outer.f_globals.get("__name__")), outer.f_code.co_name))
                outer = outer.f_back
            seen.append([f"{name}.{code}" for name, code in chain if own(name)])

    sys.setprofile(profile)
    try:
        add.delay(3, 4)
    finally:
        sys.setprofile(None)
    app.close()

    assert seen, "the driver's submit was not entered"
    assert seen[0][-1] == "taskq.task.delay"
    assert len(seen[0]) <= MAX_FRAMES, seen[0]


def run_worker(directory: Path, pool: str) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{directory}",
        "TASKQ_BROKER": f"sqlite:///{directory}/taskq.db",
        "TASKQ_RESULTS": f"sqlite:///{directory}/taskq.db",
    }
    done = subprocess.run(
        [sys.executable, "-m", "taskq", "worker", "-A", "depth:app", "-P", pool, "--burst"],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("pool", ["process", "thread", "asyncio", "solo"])
@pytest.mark.parametrize("name", ["plain", "coroutine"])
def test_few_frames_lie_between_the_loop_and_the_users_function(
    pool: str, name: str, tmp_path: Path
) -> None:
    """The loop is the executor's own `_work`, or asyncio's, which runs the task's coroutine."""
    (tmp_path / "depth.py").write_text(APP)
    url = f"sqlite:///{tmp_path}/taskq.db"
    app = TaskQ("sender", broker=url, results=url)
    result = app.send_task(f"depth.{name}")

    run_worker(tmp_path, pool)

    frames: list[list[str]] = result.get(timeout=TIMEOUT_S)
    app.close()
    between = []
    for module, function in frames:
        if not own(module) or function == "_work":
            break
        between.append(f"{module}.{function}")
    assert len(between) < len(frames), "no loop was found"
    assert 0 < len(between) <= MAX_FRAMES, between
