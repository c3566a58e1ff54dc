"""Where a worker's settings come from, and what of them a worker makes."""

from pathlib import Path
from typing import Any

import pytest

from taskq.config import WorkerSettings, worker_settings
from taskq.errors import ConfigError
from taskq.worker.pool import layout
from taskq.worker.profile import load_profile
from taskq.worker.start import start_template, worker_name


def test_options_win_over_environment_over_profile_over_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taskq.toml").write_text(
        "[worker]\nconcurrency = 1\nprefetch = 1\ngrace_s = 1\nname = 'file'\n"
    )
    profile = ("p.py", {"concurrency": 2, "prefetch": 2, "grace_s": 2})
    environ = {"TASKQ_CONCURRENCY": "3", "TASKQ_PREFETCH": "3"}

    settings = worker_settings({"concurrency": 4, "prefetch": None}, profile, environ)

    found = (settings.concurrency, settings.prefetch, settings.grace_s, settings.name)
    assert found == (4, 3, 2, "file")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"pool": "process", "concurrency": 4}, (4, 1)),
        ({"pool": "thread", "concurrency": 4}, (1, 4)),
        ({"pool": "asyncio", "concurrency": 100, "executors": 3}, (3, 34)),
        ({"pool": "thread", "concurrency": 2, "executors": 8}, (2, 1)),
        ({"pool": "solo", "concurrency": 8}, (1, 1)),
    ],
)
def test_concurrency_is_how_many_tasks_run_at_once(
    settings: dict[str, Any], expected: tuple[int, int]
) -> None:
    """In executors times tasks in each."""
    assert layout(WorkerSettings(**settings)) == expected


def test_a_workers_name_is_unique_unless_given() -> None:
    assert worker_name(WorkerSettings(name="mail@%h")).startswith("mail@")
    assert "%h" not in worker_name(WorkerSettings(name="mail@%h"))
    assert worker_name(WorkerSettings()) != worker_name(WorkerSettings(name="x"))


def test_a_profile_is_its_public_names(tmp_path: Path) -> None:
    path = tmp_path / "p.py"
    path.write_text("import os\n_private = 1\nconcurrency = 2 + 1\nqueues = ('a', 'b')\n")

    assert load_profile(str(path)) == (str(path), {"concurrency": 3, "queues": ("a", "b")})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("concurrenci = 1", "did you mean 'concurrency'"),
        ("raise SystemExit(1)", "SystemExit"),
        ("syntax error here", "SyntaxError"),
    ],
)
def test_a_wrong_profile_says_what_is_wrong(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "p.py"
    path.write_text(text)

    with pytest.raises(ConfigError, match=said):
        load_profile(str(path))


def test_a_profile_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a file"):
        load_profile(str(tmp_path / "none.py"))


def test_a_worker_needs_an_app() -> None:
    with pytest.raises(ConfigError, match="which app"):
        start_template(WorkerSettings())
