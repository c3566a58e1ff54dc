"""Which queue a call goes to: its own, its task's, a route's, the app's default."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from taskq import ConfigError, TaskQ, chain
from taskq.calls import Prepared
from taskq.routes import Route, Routes
from taskq.worker.manifest import make_manifest


def by_customer(name: str, args: Sequence[Any], kwargs: Mapping[str, Any], options: Any) -> Any:
    """Send large customers' tasks to a queue of their own."""
    if kwargs.get("customer") == "acme":
        return {"queue": "acme", "priority": 7}
    if args and args[0] == "bulk":
        return "bulk"
    return None


RULES = [
    ("mail.send", "mail-first"),
    ("mail.*", "mail"),
    (re.compile(r"etl\.(daily|weekly)"), "etl"),
    ("reports.*", {"priority": 3}),
    ("report?.[ab]", {"queue": "letters", "priority": 0}),
    by_customer,
]


def app_with(rules: Any = (), **options: Any) -> TaskQ:
    return TaskQ("routed", broker="memory://routes", routes=rules, **options)


def sent(app: TaskQ, name: str, *args: Any, **options: Any) -> Prepared:
    """Return what would be sent."""
    kwargs = options.pop("kwargs", {})
    from taskq import Signature

    (prepared,) = app._prepare([Signature(name, args, kwargs, options)])
    return prepared


@pytest.mark.parametrize(
    ("name", "args", "kwargs", "queue", "priority"),
    [
        ("mail.send", (), {}, "mail-first", 0),
        ("mail.receive", (), {}, "mail", 0),
        ("mail.a.b", (), {}, "mail", 0),
        ("Mail.send", (), {}, "default", 0),
        ("hotmail.send", (), {}, "default", 0),
        ("etl.daily", (), {}, "etl", 0),
        ("etl.daily.more", (), {}, "default", 0),
        ("reports.all", (), {}, "default", 3),
        ("report1.a", (), {}, "letters", 0),
        ("report1.c", (), {}, "default", 0),
        ("other", (), {"customer": "acme"}, "acme", 7),
        ("other", ("bulk",), {}, "bulk", 0),
        ("mail.x", (), {"customer": "acme"}, "mail", 0),
    ],
)
def test_the_first_rule_that_matches_decides(
    name: str, args: Any, kwargs: Any, queue: str, priority: int
) -> None:
    """Rules are read from the top, as a reader does; names match whole and by case."""
    outgoing = sent(app_with(RULES), name, *args, kwargs=kwargs).outgoing

    assert (outgoing.queue, outgoing.message.priority) == (queue, priority)


def test_what_is_said_nearer_to_the_call_wins() -> None:
    """Call, then declaration, then route, then the default."""
    app = app_with([("*", {"queue": "routed", "priority": 4})])

    @app.task(name="declared", queue="own", priority=2)
    def declared() -> None: ...

    assert sent(app, "any").outgoing.queue == "routed"
    assert sent(app, "any", queue="said").outgoing.queue == "said"
    assert sent(app, "any", priority=0).outgoing.message.priority == 0
    assert sent(app, "any").outgoing.message.priority == 4
    assert sent(app, "declared").outgoing.queue == "own"
    assert sent(app, "declared").outgoing.message.priority == 2
    assert sent(app, "declared", queue="said", priority=9).outgoing.queue == "said"


def test_every_step_of_a_chain_is_routed() -> None:
    """A chain that crosses services leaves each step where its workers are."""
    app = app_with({"mail.*": "mail", "etl.*": "etl"})

    @app.task(name="etl.load")
    def load() -> None: ...

    @app.task(name="mail.send")
    def send(_: Any = None) -> None: ...

    (prepared,) = app._prepare([chain(load.s(), send.s())])

    assert prepared.outgoing.queue == "etl"
    assert b"mail" in prepared.outgoing.message.body


def test_a_worker_consumes_where_its_tasks_are_routed_to() -> None:
    """Without -Q it must be on the queue that senders use."""
    app = app_with()
    app.routes.add("mail.*", "mail")
    app.routes.add(by_customer)

    @app.task(name="mail.send")
    def send() -> None: ...

    @app.task(name="own", queue="mine")
    def own() -> None: ...

    assert make_manifest(app).queues() == ("default", "mail", "mine")
    assert sent(app, "own").outgoing.queue == "mine"
    assert sent(app, "mail.send").outgoing.queue == "mail"


@pytest.mark.parametrize(
    "rules",
    [
        "mail.*",
        5,
        ["mail.*"],
        [("mail.*",)],
        [("mail.*", "a", "b")],
        [("", "mail")],
        [(5, "mail")],
        [("mail.*", 5)],
        [("mail.*", None)],
        [("mail.*", {})],
        [("mail.*", "a b")],
        [("mail.*", {"queue": "x" * 201})],
        [("mail.*", {"queue": ""})],
        [("mail.*", {"queu": "mail"})],
        [("mail.*", {"priority": 10})],
        [("mail.*", {"priority": True})],
        [("mail.*", {"priority": "high"})],
        [(re.compile(rb"x"), "mail")],
        {"mail.*": ["mail"]},
    ],
)
def test_a_rule_that_cannot_work_is_refused_at_the_start(rules: Any) -> None:
    """Not at the first send of a task that it happens to match, weeks later."""
    with pytest.raises(ConfigError, match=r"route"):
        app_with(rules)
    if isinstance(rules, list) and isinstance(rules[0], tuple) and len(rules[0]) == 2:
        with pytest.raises(ConfigError):
            Routes().add(*rules[0])


def failing(*_: Any) -> Any:
    raise KeyError("customer")


@pytest.mark.parametrize(
    ("router", "told"),
    [
        (failing, "failing failed for task mail.send: KeyError"),
        (lambda *_: 5, "leads to 5"),
        (lambda *_: "a b", "queue name 'a b'"),
        (lambda *_: {"priority": -1}, "priority -1"),
    ],
)
def test_a_function_that_goes_wrong_is_named(router: Callable[..., Any], told: str) -> None:
    """The sender gets an error that says which router, and nothing is sent to a wrong queue."""
    with pytest.raises(ConfigError, match=re.escape(told)):
        sent(app_with([router]), "mail.send")


def test_routes_of_the_file_come_before_those_of_the_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As every setting of the file wins over the code's: who runs it decides where it goes."""
    (tmp_path / "taskq.toml").write_text(
        '[routes]\n"mail.*" = "post"\n"reports.*" = { queue = "slow", priority = 2 }\n'
    )
    monkeypatch.chdir(tmp_path)
    app = TaskQ("filed", broker="memory://filed", routes=[("mail.*", "mail"), ("etl.*", "etl")])

    assert app.routes.find("mail.send", (), {}, {}) == Route("post")
    assert app.routes.find("reports.day", (), {}, {}) == Route("slow", 2)
    assert app.routes.find("etl.run", (), {}, {}) == Route("etl")
    assert app.routes.queue_of("mail.send") == "post"
    app.close()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("routes = 5", "not a table"),
        ('[routes]\n"mail.*" = 5', "mail"),
        ('[routes]\n"mail.*" = "no such name!"', "mail"),
        ('[routes]\n"mail.*" = { queu = "mail" }', "queue"),
        ('[routes]\n"" = "mail"', "pattern"),
    ],
)
def test_a_route_of_the_file_that_cannot_be_is_named_with_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, named: str
) -> None:
    """When the app is made, not at the first send."""
    path = tmp_path / "own.toml"
    path.write_text(text)
    monkeypatch.setenv("TASKQ_CONFIG", str(path))

    with pytest.raises(ConfigError, match=named) as caught:
        TaskQ("filed", broker="memory://filed")

    assert "own.toml" in str(caught.value)
