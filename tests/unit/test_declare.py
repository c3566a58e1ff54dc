"""Declaring tasks: names, options, and functions that are registered twice."""

import math
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import taskq.app
import taskq.shared
from taskq import AsyncTask, ConfigError, RetryPolicy, Task, TaskQ, current_app, task
from taskq.loading import load_app


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `@task` declares is known to every app of the process."""
    shared: dict[str, Any] = {}
    monkeypatch.setattr(taskq.shared, "shared_tasks", shared)
    monkeypatch.setattr(taskq.app, "shared_tasks", shared)


@pytest.fixture
def app() -> Iterator[TaskQ]:
    with TaskQ("declare", broker="memory://", results="memory://") as made:
        yield made


def send_mail(to: str) -> str:
    return to


def send_sms(to: str, text: str = "") -> str:
    return to + text


def test_a_task_is_named_by_module_and_function(app: TaskQ) -> None:
    """Sender and worker must come to the same name without agreeing on one."""
    assert app.task(send_mail).name == f"{__name__}.send_mail"


def test_one_decorator_can_declare_two_tasks(app: TaskQ) -> None:
    """A decorator that keeps state would register both under one name."""
    declare = app.task(queue="mail")

    first, second = declare(send_mail), declare(send_sms)

    assert first.name != second.name
    assert app.tasks[first.name].function is send_mail
    assert app.tasks[second.name].function is send_sms


def test_a_name_can_be_taken_once(app: TaskQ) -> None:
    """The second would replace the first in silence, in whichever order modules are imported."""
    app.task(name="send")(send_mail)

    with pytest.raises(ConfigError, match=r"'send' is registered twice.*give one of them"):
        app.task(name="send")(send_sms)
    assert app.tasks["send"].function is send_mail


def test_the_same_function_may_come_twice(app: TaskQ) -> None:
    """A module imported as `__main__` and by its name, or reloaded, is no conflict."""
    first = app.task(name="send")(send_mail)
    second = app.task(name="send")(send_mail)

    assert app.tasks["send"] is second
    assert first.name == second.name


def test_calling_a_task_runs_the_function_here(app: TaskQ) -> None:
    """It stays the function that it was, for tests and for direct use."""
    assert app.task(send_mail)("x") == "x"


def test_plain_and_async_functions_become_their_kind(app: TaskQ) -> None:
    """Calling one gives the value, the other a coroutine."""

    async def fetch() -> int:
        return 1

    assert type(app.task(send_mail)) is Task
    assert type(app.task(fetch)) is AsyncTask
    assert app.task(name="again")(fetch).is_async


def test_a_task_keeps_what_documents_the_function(app: TaskQ) -> None:
    """Help, documentation tools and debuggers look there."""

    def documented(x: int) -> int:
        """Say something."""
        return x

    made = app.task(documented)

    assert made.__doc__ == "Say something."
    assert made.__name__ == "documented"
    assert made.__wrapped__ is documented


def test_in_place_the_request_says_so(app: TaskQ) -> None:
    """A task that asks for its id or its attempt must work without a worker too."""

    @app.task(bind=True)
    def look(self: Task[..., Any]) -> Any:
        return self.request

    found = look()

    assert found.called_directly
    assert (found.id, found.retries, found.task) == ("", 0, look.name)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"name": ""}, "task name"),
        ({"name": 3}, "task name"),
        ({"name": "x" * 201}, "task name"),
        ({"queue": "no spaces"}, "queue name"),
        ({"max_retries": -1}, "max_retries is -1"),
        ({"max_retries": 1.5}, "max_retries is 1.5"),
        ({"max_retries": True}, "max_retries is True"),
        ({"priority": 10}, "priority is 10"),
        ({"result_ttl": 0}, "result_ttl is 0"),
        ({"time_limit": 0}, "time_limit is 0"),
        ({"time_limit": math.nan}, "time_limit is nan"),
        ({"time_limit": "1h"}, "time_limit is '1h'"),
        ({"soft_time_limit": math.inf}, "soft_time_limit is inf"),
        ({"soft_time_limit": 10, "time_limit": 10}, "must be below"),
        ({"retry": 3}, "use a RetryPolicy"),
        ({"retry": RetryPolicy}, "use a RetryPolicy"),
        ({"serializer": "pickle"}, "'msgpack' or 'json'"),
        ({"expires": -1}, "expires is -1"),
        ({"max_retrys": 3}, "did you mean 'max_retries'"),
    ],
)
def test_an_unusable_option_is_refused_at_the_declaration(
    app: TaskQ, options: dict[str, Any], text: str
) -> None:
    """On import of the module, not at the first task in production."""
    with pytest.raises(ConfigError) as caught:
        app.task(**options)(send_mail)

    assert text in str(caught.value)
    assert not app.tasks


@pytest.mark.parametrize("thing", ["text", 3, None])
def test_only_functions_are_tasks(app: TaskQ, thing: Any) -> None:
    """`@app.task("name")` is an easy slip."""
    with pytest.raises(ConfigError, match="decorates functions"):
        app.task(max_retries=1)(thing)


def test_a_shared_task_uses_the_app_that_is_current() -> None:
    """A library has no app at hand when it declares its tasks."""
    shared = task(name="lib.send")(send_mail)

    first = TaskQ("first", broker="memory://", results="memory://")
    assert "lib.send" in first.tasks
    assert shared.s("x").app is first
    second = TaskQ("second", broker="memory://", results="memory://")
    assert shared.s("x").app is second
    assert current_app() is second


def test_without_an_app_a_shared_task_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An AttributeError on None would not."""
    monkeypatch.setattr(taskq.shared, "_current", None)
    shared = task(send_mail)

    with pytest.raises(ConfigError, match="no app exists yet"):
        shared.delay("x")


def test_an_apps_own_task_wins_over_a_shared_one(app: TaskQ) -> None:
    """An application may replace what a library offers."""
    task(name="send")(send_mail)
    own = app.task(name="send")(send_sms)

    assert app.tasks["send"] is own
    assert app._find("send") is own


@pytest.mark.parametrize("countdown", [-1, math.nan, 367 * 86400])
def test_a_retry_with_an_unusable_countdown_is_refused(app: TaskQ, countdown: float) -> None:
    """The exception is the task's own, where the mistake is."""
    with pytest.raises(ConfigError, match="countdown"):
        app.task(send_mail).retry(countdown=countdown)


def test_a_retry_takes_along_the_exception_in_hand(app: TaskQ) -> None:
    """The dead letter should tell what went wrong, not that a retry was asked for."""
    made = app.task(send_mail)
    down = OSError("down")
    try:
        raise down
    except OSError:
        retry = made.retry(countdown=5)

    assert retry.cause is down
    assert made.retry().cause is None


SCRIPT = """
from taskq import TaskQ, task
app = TaskQ("script", broker="memory://", results="memory://")

@app.task
def own(): ...

@task
def shared(): ...
"""


def test_a_script_and_its_worker_come_to_the_same_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`python shop.py` sends what `taskq worker -A shop.py` and `-A shop:app` run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = tmp_path / "shop_script.py"
    path.write_text(SCRIPT)
    wanted = {"shop_script.own", "shop_script.shared"}

    main = sys.modules["__main__"]
    monkeypatch.setattr(main, "__file__", str(path), raising=False)
    as_script = runpy.run_path(str(path), run_name="__main__")["app"].tasks.keys()
    try:
        by_path = load_app("shop_script.py").tasks.keys()
        by_name = load_app("shop_script:app").tasks.keys()
    finally:
        sys.modules.pop("shop_script", None)

    assert by_path == by_name == wanted
    assert {name.rpartition(".")[2] for name in as_script} == {"own", "shared"}
