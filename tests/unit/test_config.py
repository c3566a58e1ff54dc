"""Settings: where they come from, which wins, and what is said about a wrong one."""

from pathlib import Path
from typing import Any

import pytest

from taskq import ConfigError, TaskQ
from taskq.config import (
    EMBEDDED_URL,
    Settings,
    WorkerSettings,
    app_settings,
    describe,
    read_environment,
    setting_names,
    worker_settings,
)


@pytest.fixture(autouse=True)
def empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory may hold a taskq.toml."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_without_settings_everything_is_embedded() -> None:
    """The first steps need no server."""
    settings = app_settings({}, {})

    assert (settings.broker, settings.results) == (EMBEDDED_URL, EMBEDDED_URL)


def test_a_broker_without_results_means_that_results_are_off() -> None:
    """A file beside RabbitMQ would hold results that no other host sees."""
    settings = app_settings({"broker": "amqp://host"}, {})

    assert settings.results is None


@pytest.mark.parametrize("text", ["off", "OFF", "none", "disabled", ""])
def test_results_can_be_turned_off(text: str) -> None:
    """An environment variable cannot be None."""
    assert app_settings({}, {"TASKQ_RESULTS": text}).results is None


def test_the_app_takes_environment_over_file_over_argument(empty_directory: Path) -> None:
    """Code says the least about where it runs, the environment the most."""
    (empty_directory / "taskq.toml").write_text("prefix = 'file'\ndefault_queue = 'file'\n")
    arguments = {"prefix": "argument", "default_queue": "argument", "max_retries": 7}

    settings = app_settings(arguments, {"TASKQ_PREFIX": "environment"})

    assert settings.prefix == "environment"
    assert settings.default_queue == "file"
    assert settings.max_retries == 7
    assert settings.serializer == "msgpack"


def test_the_worker_takes_option_over_environment_over_profile_over_file(
    empty_directory: Path,
) -> None:
    """What an operator types last must win."""
    (empty_directory / "taskq.toml").write_text(
        "[worker]\npool = 'solo'\nconcurrency = 1\nprefetch = 1\ngrace_s = 1\n"
    )
    profile = ("p.py", {"concurrency": 2, "prefetch": 2, "grace_s": 2})
    environment = {"TASKQ_PREFETCH": "3", "TASKQ_GRACE_S": "3"}

    settings = worker_settings({"grace_s": 4, "prefetch": None}, profile, environment)

    assert (settings.pool, settings.concurrency) == ("solo", 2)
    assert (settings.prefetch, settings.grace_s) == (3, 4)


def test_pyproject_may_hold_the_settings(empty_directory: Path) -> None:
    """One file less; taskq.toml wins where there are both."""
    (empty_directory / "pyproject.toml").write_text("[tool.taskq]\nprefix = 'project'\n")
    assert app_settings({}, {}).prefix == "project"

    (empty_directory / "taskq.toml").write_text("prefix = 'own'\n")
    assert app_settings({}, {}).prefix == "own"


def test_a_broken_pyproject_is_other_tools_business(empty_directory: Path) -> None:
    """A queue must not refuse to start over somebody's build settings."""
    (empty_directory / "pyproject.toml").write_text("not toml [")

    assert app_settings({}, {}).prefix == ""


@pytest.mark.parametrize("content", [None, "not toml [", "worker = 3\n", "prefx = 'x'\n"])
def test_a_file_that_is_named_must_be_right(empty_directory: Path, content: str | None) -> None:
    """Whoever names a file means it."""
    path = empty_directory / "other.toml"
    if content is not None:
        path.write_text(content)

    with pytest.raises(ConfigError, match=r"other\.toml"):
        app_settings({}, {"TASKQ_CONFIG": str(path)})


def test_a_secret_comes_from_a_file(empty_directory: Path) -> None:
    """As containers hand them over, with a newline at the end."""
    secret = empty_directory / "broker"
    secret.write_text("amqp://user:secret@host\n")

    settings = app_settings({}, {"TASKQ_BROKER_FILE": str(secret)})

    assert settings.broker == "amqp://user:secret@host"


def test_a_secret_in_both_forms_is_refused(empty_directory: Path) -> None:
    """Which of them is stale cannot be known."""
    (empty_directory / "b").write_text("x")

    with pytest.raises(ConfigError, match="both TASKQ_BROKER and TASKQ_BROKER_FILE"):
        app_settings({}, {"TASKQ_BROKER": "x", "TASKQ_BROKER_FILE": "b"})


def test_a_secret_that_cannot_be_read_is_refused() -> None:
    """The embedded file in its place would take the tasks and show them to nobody."""
    with pytest.raises(ConfigError, match="TASKQ_RESULTS_FILE names nowhere"):
        app_settings({}, {"TASKQ_RESULTS_FILE": "nowhere"})


@pytest.mark.parametrize(
    ("environment", "suggestion"),
    [
        ({"TASKQ_BROKR": "x"}, "TASKQ_BROKER"),
        ({"TASKQ_CONCURENCY": "3"}, "TASKQ_CONCURRENCY"),
        ({"TASKQ_RESULT_FILE": "x"}, "TASKQ_RESULT"),
    ],
)
@pytest.mark.parametrize("kind", [Settings, WorkerSettings])
def test_a_misspelt_variable_is_an_error_with_the_nearest_name(
    kind: type[Any], environment: dict[str, str], suggestion: str
) -> None:
    """Ignored, it would leave production on the default."""
    with pytest.raises(ConfigError, match=rf"did you mean '{suggestion}"):
        read_environment(kind, environment)


def test_variables_of_the_other_kind_and_of_others_are_left_alone() -> None:
    """The environment is shared by app, worker, and every other program."""
    environment = {"TASKQ_POOL": "solo", "TASKQ_APP": "m:a", "PATH": "/bin", "TASKQ_PREFIX": "p"}

    assert read_environment(Settings, environment) == {"prefix": "p"}
    assert read_environment(WorkerSettings, environment) == {"pool": "solo"}


def test_a_misspelt_argument_suggests_the_nearest() -> None:
    """`TaskQ(**settings)` would otherwise swallow it."""
    with pytest.raises(ConfigError, match=r"'max_retrys' in TaskQ.* mean 'max_retries'"):
        TaskQ("x", max_retrys=3)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("max_retries", "7", 7),
        ("publish_timeout_s", "2.5", 2.5),
        ("imports", "a, b.c,", ("a", "b.c")),
        ("declare", "PASSIVE", "passive"),
        ("result_ttl_s", " 60 ", 60),
    ],
)
def test_texts_become_the_type_of_their_setting(name: str, text: str, value: Any) -> None:
    """The environment knows texts alone."""
    assert getattr(app_settings({}, {f"TASKQ_{name.upper()}": text}), name) == value


@pytest.mark.parametrize(
    ("text", "value"), [("1", True), ("yes", True), ("off", False), ("", False), ("False", False)]
)
def test_switches_are_read_by_their_meaning(text: str, value: bool) -> None:
    """bool("false") is true."""
    assert worker_settings({}, environ={"TASKQ_BURST": text}).burst is value


def test_prefetch_auto_is_its_default() -> None:
    """The word of the command line."""
    assert worker_settings({"prefetch": "auto"}, environ={}).prefetch == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_retries", -1),
        ("max_retries", "three"),
        ("max_retries", 2.5),
        ("max_retries", True),
        ("publish_timeout_s", 0),
        ("publish_timeout_s", float("nan")),
        ("publish_timeout_s", float("inf")),
        ("result_ttl_s", 0),
        ("declare", "maybe"),
        ("queue_type", "quorums"),
        ("prefix", 3),
        ("imports", [1]),
    ],
)
def test_a_value_that_cannot_work_names_setting_and_place(name: str, value: Any) -> None:
    """The error is read by somebody who did not write the setting."""
    with pytest.raises(ConfigError, match=name):
        app_settings({name: value}, {})


@pytest.mark.parametrize(
    ("name", "value"),
    [("concurrency", -1), ("burst", "perhaps"), ("pool", "threads"), ("grace_s", "long")],
)
def test_a_worker_value_that_cannot_work_names_setting_and_place(name: str, value: Any) -> None:
    """A worker that starts with another pool than was meant is found at night."""
    with pytest.raises(ConfigError, match=f"{name}.*the command line|{name} is"):
        worker_settings({name: value}, environ={})


def test_every_setting_has_a_help_text() -> None:
    """The documentation is made of them."""
    for kind in (Settings, WorkerSettings):
        rows = describe(kind)

        assert [row[0] for row in rows] == setting_names(kind)
        assert all(len(row[3]) > 10 for row in rows)
