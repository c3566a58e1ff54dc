"""Errors of the command line: one line on stderr and an exit code, never a traceback."""

import os
import sys
import traceback
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Final

import click

from taskq.cli.output import clean, paint
from taskq.errors import (
    BrokerError,
    BrokerUnavailable,
    ConfigError,
    PublishError,
    ResultsUnavailable,
    TaskqError,
)

# Those of taskq.worker.lifecycle, which would bring the whole worker into every `--help`.
EX_OK, EX_FAILURE, EX_UNAVAILABLE, EX_CONFIG = 0, 1, 69, 78
EX_USAGE: Final = 2
EX_INTERRUPTED: Final = 130
_AWAY: Final = frozenset({"unavailable", "timeout", "blocked"})


class Failure(TaskqError):
    """A command failed: what happened, what to try, and the exit code.

    Attributes:
        code: The exit code.
    """

    def __init__(self, what: str, code: int = EX_FAILURE) -> None:
        super().__init__(what)
        self.code = code


def exit_code(error: Exception) -> int:
    """Return the exit code that an exception stands for."""
    if isinstance(error, Failure):
        return error.code
    if isinstance(error, PublishError):
        if error.reason == "denied":
            return EX_CONFIG
        return EX_UNAVAILABLE if error.reason in _AWAY else EX_FAILURE
    if isinstance(error, ConfigError):
        return EX_CONFIG
    if isinstance(error, BrokerUnavailable | ResultsUnavailable | BrokerError):
        return EX_UNAVAILABLE
    return EX_FAILURE


def complain(text: str) -> None:
    """Write `Error: text` to stderr."""
    click.echo(f"{paint('Error:', 'red', err=True)} {clean(text, lines=True)}", err=True)


def run_guarded(run: Callable[[], Any]) -> int:
    """Run a command line and return its exit code.

    Args:
        run: Runs it; returns the exit code, or anything else for success.
    """
    try:
        code = run()
        sys.stdout.flush()
    except click.exceptions.Abort as abort:
        if isinstance(abort.__cause__, KeyboardInterrupt):
            return EX_INTERRUPTED
        complain("not done")
        return EX_FAILURE
    except click.UsageError as error:
        error.show()
        return EX_USAGE
    except click.ClickException as error:
        complain(error.format_message())
        return error.exit_code
    except KeyboardInterrupt:
        return EX_INTERRUPTED
    except BrokenPipeError:
        # Who reads has read enough; at exit Python would flush, and complain, once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EX_OK
    # A user gets words and an exit code for whatever it is, never a traceback unasked.
    except Exception as error:
        return _explain(error)
    return code if isinstance(code, int) else EX_OK


def _explain(error: Exception) -> int:
    debug = _wants_debug()
    if isinstance(error, TaskqError):
        complain(str(error))
    else:
        complain(f"{type(error).__name__}: {error}; run it again with -l debug to see where")
    if debug:
        notes = getattr(error, "__notes__", None)
        text = "".join(notes or traceback.format_exception(error.__cause__ or error))
        click.echo(clean(text, lines=True), err=True)
    return exit_code(error)


def _wants_debug() -> bool:
    # The context is gone by now, and an error may come before there is one.
    words = sys.argv[1:]
    names = ("-l", "--log-level", "--loglevel")
    apart = any(one in names and two.lower() == "debug" for one, two in pairwise(words))
    together = {"-ldebug", "--log-level=debug", "--loglevel=debug"}
    by_environment = os.environ.get("TASKQ_LOG_LEVEL", "").lower() == "debug"
    return apart or by_environment or bool(together.intersection(words))
