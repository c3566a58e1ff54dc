"""The command line without any broker: options, help, exit codes, what is printed."""

import json
import subprocess
import sys
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import click
import pytest
from click.testing import CliRunner
from commandline import parse_command

from taskq import errors
from taskq.cli import main, output
from taskq.cli.errors import (
    EX_CONFIG,
    EX_FAILURE,
    EX_INTERRUPTED,
    EX_OK,
    EX_UNAVAILABLE,
    EX_USAGE,
    Failure,
    exit_code,
    run_guarded,
)
from taskq.cli.framework import app_place
from taskq.cli.root import COMMANDS
from taskq.cli.values import JSON_LIST, MOMENT, SINCE, SPAN
from taskq.plain import plain
from taskq.worker import lifecycle

ROOT = Path(__file__).parents[2]

WALK = """
import click, contextlib, io, json, sys
from taskq.cli import main

def walk(command, words):
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        try:
            main([*words, "--help"])
        except SystemExit as end:
            assert end.code == 0, words
    found[" ".join(words)] = text.getvalue()
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            walk(command.get_command(context, name), [*words, name])

found = {}
walk(main, [])
print(json.dumps([found, sorted(sys.modules)]))
"""


@pytest.fixture(scope="module")
def helps() -> tuple[dict[str, str], list[str]]:
    """The help of every command, and the modules that were imported for all of them."""
    done = subprocess.run(
        [sys.executable, "-c", WALK], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found, modules = json.loads(done.stdout)
    return found, modules


def test_no_help_imports_a_driver(helps: tuple[dict[str, str], list[str]]) -> None:
    """`taskq --help` must answer at once, also where a driver is not installed."""
    _, modules = helps

    drivers = {"pika", "redis", "sqlite3", "croniter", "rich", "confluent_kafka"}
    assert not drivers & set(modules)


def test_every_command_has_examples_and_takes_an_app(
    helps: tuple[dict[str, str], list[str]],
) -> None:
    """Nobody reads a reference to the end; everybody copies an example."""
    texts, _ = helps

    assert {"worker", "dead replay", "queues purge", "inspect delayed", "doctor"} <= set(texts)
    for words, text in texts.items():
        assert "Examples:\n    " in text, words
        assert "taskq" in text.partition("Examples:")[2], words
        assert "-A, --app" in text, words


def test_the_help_lists_the_commands_of_the_table() -> None:
    """The short help stands in a table of its own; it must not name what is not there."""
    for name in COMMANDS:
        command = main.get_command(click.Context(main), name)

        assert command is not None
        assert command.name == name


@pytest.mark.parametrize(
    "words",
    [
        ["-A", "shop:app", "dead", "show", "x"],
        ["dead", "-A", "shop:app", "show", "x"],
        ["dead", "show", "-A", "shop:app", "x"],
        ["dead", "show", "x", "--app=shop:app"],
        ["-A", "other:app", "dead", "show", "x", "-A", "shop:app"],
    ],
)
def test_the_app_may_be_named_at_any_depth(words: list[str]) -> None:
    """Celery wants -A before the command, and everybody gets it wrong once."""
    with parse_command(words):
        assert app_place() == "shop:app"


def test_the_environment_names_the_app_when_no_option_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A container sets TASKQ_APP once for all of its commands."""
    monkeypatch.setenv("TASKQ_APP", "shop:app")

    with parse_command(["queues", "ls"]):
        assert app_place() == "shop:app"
    with parse_command(["queues", "ls", "-A", "mine:app"]):
        assert app_place() == "mine:app"


def test_burst_is_left_to_weaker_settings_unless_it_is_given() -> None:
    """A False from the command line would win over `burst = True` of a profile."""
    assert parse_command(["worker"]).params["burst"] is None
    assert parse_command(["worker", "--burst"]).params["burst"] is True


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["wroker"], "did you mean 'worker'"),
        (["worker", "--concurency", "3"], "--concurrency"),
        (["worker", "-c", "many"], "-c"),
        (["worker", "-P", "gevent"], "process"),
        (["call", "x", "--args", "{}"], "[2, 3]"),
        (["call", "x", "--args", "[1,"], "[2, 3]"),
        (["call", "x", "--kwargs", "[NaN]"], "NaN"),
        (["call", "x", "--eta", "tomorrow"], "2026-01-31"),
        (["call", "x", "--priority", "10"], "priority"),
        (["dead", "ls", "--since", "yesterday"], "7d"),
        (["dead", "ls", "--reason", "tired"], "worker_lost"),
        (["dead", "drop"], "--all"),
        (["queues", "purge", "taskq.dead"], "taskq dead drop"),
        (["completion", "tcsh"], "bash"),
    ],
)
def test_wrong_usage_exits_with_2_and_says_what_is_right(words: list[str], hint: str) -> None:
    """A script tells a typing error from a failure by the exit code."""
    done = CliRunner().invoke(main, words)

    assert done.exit_code == EX_USAGE, done.output
    assert done.stdout == ""
    assert hint in done.stderr


def test_exit_codes_are_those_of_the_worker() -> None:
    """The two tables stand apart only to keep the worker out of every `--help`."""
    names = ("EX_OK", "EX_FAILURE", "EX_UNAVAILABLE", "EX_CONFIG")

    ours = (EX_OK, EX_FAILURE, EX_UNAVAILABLE, EX_CONFIG)

    assert ours == tuple(getattr(lifecycle, name) for name in names)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigError("x"), 78),
        (errors.TopologyMismatch("x"), 78),
        (errors.BrokerUnavailable("x"), 69),
        (errors.ResultsUnavailable("x"), 69),
        (errors.PublishError("id", "unavailable", "x"), 69),
        (errors.PublishError("id", "unroutable", "x"), 1),
        (errors.ResultsDisabled("x"), 1),
        (errors.ResultTimeout("id", 1), 1),
        (Failure("x", 69), 69),
        (ValueError("x"), 1),
    ],
)
def test_each_error_has_its_exit_code(
    error: Exception, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Supervisors restart on 69 and 75, and give up on 78."""

    def run() -> None:
        raise error

    assert run_guarded(run) == exit_code(error) == code
    printed = capsys.readouterr()
    assert printed.err.startswith("Error: ")
    assert "Traceback" not in printed.err
    assert printed.out == ""


def test_an_interrupt_is_no_failure_of_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C ends with 130, as shells expect, and without a traceback."""

    def run() -> None:
        raise KeyboardInterrupt

    def run_in_click() -> None:
        raise click.Abort from KeyboardInterrupt()

    assert run_guarded(run) == run_guarded(run_in_click) == EX_INTERRUPTED
    assert capsys.readouterr().err == ""


def test_a_reader_that_has_enough_is_no_error() -> None:
    """`taskq ... | head -1` closes the pipe while there is more to write."""
    code = "import sys; from taskq.cli import main; main(['--help'])"
    done = subprocess.run(
        ["sh", "-c", '"$0" -c "$1" | true; exit 0', sys.executable, code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.stderr == ""


# --- values


def test_spans_take_units() -> None:
    """7d is easier to type, and to check, than 604800."""
    found = [SPAN.convert(text, None, None) for text in ("90", "1.5s", "30m", "12h", "7d", "1w")]

    assert found == [90, 1.5, 1800, 43200, 604800, 604800]


def test_moments_without_offset_are_utc() -> None:
    """A naive date would be refused by apply_async, or be off by the machine's zone."""
    assert MOMENT.convert("2026-01-31T12:00", None, None) == datetime(2026, 1, 31, 12, tzinfo=UTC)
    assert SINCE.convert("1970-01-02", None, None) == 86_400_000


def test_json_options_are_lists_and_maps() -> None:
    """`--args 5` is a mistake that must not become a task with wrong arguments."""
    assert JSON_LIST.convert('[2, {"a": null}]', None, None) == [2, {"a": None}]


def test_plain_values_are_json_whatever_a_task_returned() -> None:
    """`taskq result --json` must print JSON also for what JSON has no form for."""
    deep: Any = []
    for _ in range(500):
        deep = [deep]
    value = {
        "bytes": b"ab",
        "date": date(2026, 1, 31),
        "decimal": Decimal("1.50"),
        "nan": float("nan"),
        "uuid": UUID(int=1),
        3: (1, 2),
        "deep": deep,
        "object": object,
    }

    found = json.loads(json.dumps(plain(value), allow_nan=False))

    assert found["bytes"] == {"__type__": "base64", "__value__": "YWI="}
    assert (found["date"], found["decimal"], found["nan"]) == ("2026-01-31", "1.50", "nan")
    assert found["3"] == [1, 2]


# --- what is printed


def test_text_of_a_message_cannot_steer_the_terminal() -> None:
    """A task's error text comes from anywhere: an escape sequence could hide or fake lines."""
    hostile = "\x1b[2Jgone\r\nfine\ttab \u202e reversed"

    one_line = output.clean(hostile)

    assert one_line.isprintable()
    assert "\\x1b[2Jgone" in one_line
    assert output.clean(hostile, lines=True).splitlines()[1].startswith("fine\ttab")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, False),
        ({"FORCE_COLOR": "1"}, True),
        ({"FORCE_COLOR": "0"}, False),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
    ],
)
def test_colours_follow_terminal_and_environment(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: bool
) -> None:
    """Escape sequences in a log file or a pipe help nobody."""
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    assert output.colours() is expected
    assert ("\x1b[" in output.paint("ok", "green")) is expected


def test_a_table_is_aligned_and_shows_numbers_to_the_right(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Plain text is what every terminal, log and mail can show."""
    output.table(("NAME", "N"), [("a", 5), ("漢字", 1000), ("bc", None)])

    assert capsys.readouterr().out == "NAME     N\na        5\n漢字  1000\nbc       -\n"


def test_an_empty_table_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    """No output at all looks like a broken command."""
    output.table(("NAME",), [], "no queues")

    assert capsys.readouterr().out == "no queues\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_call_taskq(shell: str) -> None:
    """The script is made without the shell at hand, as in a Dockerfile."""
    done = CliRunner().invoke(main, ["completion", shell])

    assert done.exit_code == 0
    assert "_TASKQ_COMPLETE" in done.stdout


def test_completion_knows_subcommands_and_options() -> None:
    """A completion that stops at the first word is no help."""

    def complete(words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "taskq"],
            cwd=ROOT,
            env={
                "_TASKQ_COMPLETE": "bash_complete",
                "COMP_WORDS": f"taskq {words}",
                "COMP_CWORD": str(len(words.split())),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout

    assert "plain,replay" in complete("dead re")
    assert "plain,--prefetch" in complete("worker --pre")


def test_the_version_is_that_of_the_package() -> None:
    """The first thing that every bug report is asked for."""
    from taskq import __version__

    done = CliRunner().invoke(main, ["version", "--json"])

    assert json.loads(done.stdout)["taskq"] == __version__
    assert __version__ in CliRunner().invoke(main, ["--version"]).stdout
