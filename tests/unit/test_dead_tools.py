"""The parts of the tools for dead letters: edits, files, journals, the index, pace, redaction."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taskq import Signature, TaskQ, chain
from taskq.body import encode_call
from taskq.brokers import open_broker
from taskq.brokers.base import BrokerOptions, Delivery, Outgoing
from taskq.calls import prepare
from taskq.dead import DeadLetter, DeadLetters, Edit, Filter, Journals
from taskq.dead.edit import parameter_names
from taskq.dead.files import read_letters, write_letter
from taskq.dead.journal import state_directory
from taskq.dead.letter import read_letter
from taskq.dead.pace import Pace
from taskq.dead.snapshot import Snapshot
from taskq.errors import ConfigError, RemoteError
from taskq.message import Message
from taskq.redact import HIDDEN, Redactor
from taskq.resend import dead


def letter_of(message: Message | None = None, **headers: Any) -> DeadLetter:
    call = message or encode_call("shop.pay", "id-1", [1], {"to": "ann"}, headers=headers)
    error = RemoteError("builtins", "ValueError", "no money")
    return read_letter(
        Delivery(1, "taskq.dead", dead(call, "failed", "bills", error=error, attempts=4))
    )


# --- edits


def test_an_edit_keeps_what_it_does_not_name() -> None:
    """The other arguments, the steps that follow, the story of the failure."""
    first, second = (Signature(n, (1,), {"to": "x"}, {"task_id": n}) for n in ("a", "b"))
    app = TaskQ("edit", broker="memory://edit", results="memory://edit")
    moved = prepare(chain(first, second), lambda name: {}, app.settings).outgoing.message
    letter = letter_of(moved)

    changed = letter_of(moved)
    message = Edit(kwargs={"to": "y"}).apply(letter)

    call = replace(changed, message=message).call()
    assert (call.args, call.kwargs) == ([1], {"to": "y"})
    assert call.embed == letter.call().embed
    assert message.headers == letter.message.headers
    assert Edit(queue="other").apply(letter).body == letter.message.body


def test_an_edit_is_written_as_the_message_was() -> None:
    """A Celery worker that reads JSON must be able to read it afterwards."""
    call = encode_call("t", "id", [1], {}, serializer="json", headers={"argsrepr": "(1,)"})

    message = Edit(args=[2]).apply(letter_of(call))

    assert message.content_type == "application/json"
    assert json.loads(message.body)[0] == [2]
    assert "argsrepr" not in message.headers


def test_a_letter_that_cannot_be_read_needs_all_its_arguments() -> None:
    """Half of the arguments of a damaged body cannot be guessed."""
    letter = letter_of(Message("t", "id", b"\xc1"))

    with pytest.raises(ConfigError, match="give both"):
        Edit(args=[1]).apply(letter)
    made = Edit(args=[1], kwargs={}).apply(letter)
    assert replace(letter, message=made).call().args == [1]
    with pytest.raises(ConfigError, match="names no task"):
        Edit(args=[1], kwargs={}).apply(letter_of(Message("", "", b"")))


def test_arguments_are_held_against_the_signature() -> None:
    """A letter that cannot be called would come back at once."""
    app = TaskQ("edit", broker="memory://edit", results="memory://edit")

    @app.task(name="shop.pay", bind=True)
    def pay(self: Any, amount: int, to: str = "ann") -> None:
        """Pay."""

    with pytest.raises(TypeError, match=r"shop\.pay"):
        Edit(kwargs={"amont": 1}).apply(letter_of(), app.tasks)
    assert Edit(args=[5], kwargs={}).apply(letter_of(), app.tasks)
    assert parameter_names(app.tasks["shop.pay"]) == ["amount", "to"]


# --- files


_headers = st.dictionaries(
    st.text(min_size=1, max_size=20),
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text() | st.binary(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    ),
    max_size=4,
)


@settings(max_examples=100, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(body=st.binary(max_size=200), headers=_headers, task=st.text(max_size=20))
def test_an_exported_letter_comes_back_the_same(
    body: bytes, headers: dict[str, Any], task: str
) -> None:
    """Malformed messages are dead letters too, and their bytes are all that tells why."""
    letter = letter_of(Message(task, "id-1", body, headers))

    (back,) = read_letters([write_letter(letter) + "\n", "\n"], "file")

    assert back.message == letter.message
    assert back.key == letter.key


@pytest.mark.parametrize(
    "line",
    [
        "garbage",
        "[]",
        "{}",
        '{"taskq_dead_letter": 2}',
        '{"taskq_dead_letter": 1}',
        '{"taskq_dead_letter": 1, "message": []}',
        '{"taskq_dead_letter": 1, "message": {"task": 1}}',
        "[" * 100_000,
        '"\\ud800"',
    ],
)
def test_a_line_that_is_no_letter_is_named(line: str) -> None:
    """Half an import is harder to mend than none."""
    with pytest.raises(ConfigError, match=r"line 2 of kept\.jsonl"):
        read_letters([write_letter(letter_of()), line], "kept.jsonl")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("body", "%%%"),
        ("body", None),
        ("headers", "wQ=="),
        ("headers", "kA=="),
        ("priority", 99),
        ("content_type", None),
    ],
)
def test_a_damaged_part_of_a_line_is_refused(name: str, value: Any) -> None:
    """It was edited by hand, and the message would be malformed."""
    data = json.loads(write_letter(letter_of()))
    data["message"][name] = value

    with pytest.raises(ConfigError, match="line 1"):
        read_letters([json.dumps(data)], "file")


# --- journals


def test_a_journal_survives_a_kill_in_the_middle_of_a_line(tmp_path: Path) -> None:
    """The last line is the one that is half written when the power goes."""
    journals = Journals(str(tmp_path))
    journal = journals.begin("replay", {("id-1", 5, "q", 0)}, broker="b", prefix="", resumable=True)
    journal.note(sent=["id-1"])
    with journal.path.open("a") as stream:
        stream.write('{"sent": ["id-')

    loaded = journals.load(journal.job)

    assert loaded.keys == {("id-1", 5, "q", 0)}
    assert loaded.sent == ["id-1"]
    assert [one.job for one in journals.unfinished("b", "")] == [journal.job]
    assert journals.unfinished("b", "other.") == []
    assert journals.unfinished("c", "") == []
    loaded.note(ended=1)
    assert journals.unfinished("b", "") == []
    assert journal.path.stat().st_mode & 0o777 == 0o600


def test_a_file_that_is_no_journal_is_an_error_by_name_and_nothing_in_the_list(
    tmp_path: Path,
) -> None:
    """A damaged journal must not take the others with it."""
    journals = Journals(str(tmp_path))
    good = journals.begin("drop", {("id-1", 5, "q", 0)})
    (journals.directory / "20260101-000000-abcdef.jsonl").write_text("{}\n")

    assert [one.job for one in journals.all()] == [good.job]
    with pytest.raises(ConfigError, match="no journal that this taskq can read"):
        journals.load("20260101-000000-abcdef")


def test_the_state_directory_is_the_users_unless_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every other program of the desktop keeps such files."""
    monkeypatch.setenv("HOME", "/nowhere/ann")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert state_directory() == Path("/nowhere/ann/.local/state/taskq")
    monkeypatch.setenv("XDG_STATE_HOME", "/nowhere/state")
    assert state_directory() == Path("/nowhere/state/taskq")
    assert state_directory("/nowhere/else") == Path("/nowhere/else")


# --- the index


def test_an_index_holds_hostile_letters_too(tmp_path: Path) -> None:
    """One letter with half a character in its name must not hide the others."""
    with TaskQ("index", broker="memory://index", results="off") as app:
        bad = letter_of(Message("a\ud800b", "id-9", b""), attempts=2**70)
        batch = [Outgoing("q", letter_of().message, dead=True)]
        app.broker.publish(batch, 5)
        snapshot = Snapshot(app.broker, str(tmp_path))
        letters = DeadLetters(app.broker)
        walk = letters.walk
        letters.walk = lambda visit, progress=None: (visit(bad), walk(visit, progress))[1]  # type: ignore[method-assign]
        snapshot.take(letters)

        page = snapshot.page(Filter(), 1, 10)

        assert [one.id for one in page.letters] == ["id-9", "id-1"]
        assert page.letters[1].exception == letter_of().exception
        assert snapshot.page(Filter(ids=("id-9",)), 1, 10).total == 1
        assert snapshot.page(Filter(), 3, 1).letters == []
        snapshot.forget()
        assert not snapshot.exists


def test_an_index_that_is_damaged_is_an_error_with_a_name(tmp_path: Path) -> None:
    """A disk that was full once leaves such files."""
    broker = open_broker("memory://damaged", BrokerOptions())
    snapshot = Snapshot(broker, str(tmp_path))
    snapshot.take(DeadLetters(broker))
    for path in (tmp_path / "dead").glob("index-*"):
        path.write_bytes(b"garbage" * 1000)

    with pytest.raises(ConfigError, match="cannot read the index"):
        snapshot.page(Filter(), 1, 10)
    broker.close()


# --- pace


def test_a_rate_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A partner who just came back must not be run over again."""
    now = [100.0]
    monkeypatch.setattr("taskq.dead.pace.clock.monotonic_s", lambda: now[0])

    def sleep(seconds: float) -> None:
        now[0] += seconds

    pace = Pace(50.0, sleep)
    left, gone = 500, Counter[int]()
    while left:
        count = pace(left)
        left -= count
        gone[int(now[0] - 100.0)] += count

    # One group more, where a second begins within it.
    assert max(gone.values()) <= 55
    assert now[0] == pytest.approx(110.0, abs=0.2)
    assert Pace(0.0, sleep)(123) == 123
    assert Pace(0.01, sleep)(123) == 1


# --- redaction


def test_what_sounds_like_a_secret_is_hidden() -> None:
    """In whatever case and however deep."""
    redactor = Redactor(("password", "api_key"))

    assert redactor.value({"PASSWORD": 1, "a": [{"Api-Key": 2}], "b": 3}) == {
        "PASSWORD": HIDDEN,
        "a": [{"Api-Key": HIDDEN}],
        "b": 3,
    }
    assert redactor.arguments(["x", "y"], ["user", "old_password"]) == ["x", HIDDEN]
    assert redactor.arguments(["x", {"password": 1}]) == ["x", {"password": HIDDEN}]
    deep: Any = "secret"
    for _ in range(200):
        deep = [deep]
    assert "secret" not in str(redactor.value(deep))
    assert Redactor(()).value({"password": 1}) == {"password": 1}
