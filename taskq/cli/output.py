"""What commands print: tables, JSON, colours on a terminal, progress."""

import importlib.util
import json
import os
import shutil
import sys
import time
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import click

from taskq.config import nearest
from taskq.plain import plain

_CELL: Final = 60
_UUID: Final = 36
_BAR: Final = 30
_PROGRESS_S: Final = 0.1
_PROGRESS_APART_S: Final = 5.0

STATE_COLOURS: Final = {
    "SUCCESS": "green",
    "ok": "green",
    "RETRY": "yellow",
    "warning": "yellow",
    "FAILURE": "red",
    "failed": "red",
    "CANCELLED": "magenta",
    "EXPIRED": "magenta",
    "STARTED": "cyan",
}


def colours(*, err: bool = False) -> bool:
    """Return whether a stream takes colours: NO_COLOR, FORCE_COLOR, or whether it is a terminal."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR", "0") not in ("", "0"):
        return True
    stream = sys.stderr if err else sys.stdout
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def paint(text: str, colour: str | None, *, err: bool = False) -> str:
    """Return a text in a colour, where the stream takes colours."""
    return click.style(text, fg=colour) if colour and colours(err=err) else text


def say(text: str = "") -> None:
    """Print a line on stdout; colours that `paint` gave it stay."""
    click.echo(text, color=colours())


def clean(text: str, *, lines: bool = False) -> str:
    """Return a text without control characters: a message must not steer the terminal.

    Args:
        text: Whatever came from a message, a server or a file name.
        lines: Whether line ends and tabs are kept.
    """
    if text.isprintable():
        return text
    kept = "\n\t" if lines else ""
    return "".join(
        ch if ch in kept or ch.isprintable() else ascii(ch)[1:-1].replace("\\n", " ") for ch in text
    )


def write_json(value: Any) -> None:
    """Print a value as JSON."""
    click.echo(json.dumps(plain(value), indent=2))


def as_text(value: Any) -> str:
    """Return a value as one line of JSON."""
    return json.dumps(plain(value), ensure_ascii=False)


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], empty: str = "none") -> None:
    """Print rows under headings: numbers to the right, everything else to the left.

    On a terminal, long cells are cut, and `rich` draws the table where it is installed.

    Args:
        columns: Headings.
        rows: Cells; None is shown as `-`.
        empty: What is printed when there are no rows.
    """
    if not rows:
        say(empty)
        return
    terminal = sys.stdout.isatty()
    cells = [[_cell(value, cut=terminal) for value in row] for row in rows]
    right = [
        all(isinstance(row[i], int | float | None) for row in rows) for i in range(len(rows[0]))
    ]
    if terminal and importlib.util.find_spec("rich") is not None:
        _rich_table(columns, cells, right)
        return
    widths = [max(map(_width, column)) for column in zip(columns, *cells, strict=True)]
    lines = [_line(columns, widths, right)]
    lines += [_line(row, widths, right, colour=True) for row in cells]
    for line in lines:
        say(line.rstrip())


def _cell(value: Any, *, cut: bool) -> str:
    if value is None:
        return "-"
    text = f"{value:g}" if isinstance(value, float) else clean(str(value))
    return f"{text[: _CELL - 1]}…" if cut and len(text) > _CELL else text


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(ch) in "WF" else 1 for ch in text)


def _line(
    cells: Sequence[str], widths: Sequence[int], right: Sequence[bool], *, colour: bool = False
) -> str:
    padded = []
    for text, width, to_right in zip(cells, widths, right, strict=True):
        space = " " * (width - _width(text))
        shown = paint(text, STATE_COLOURS.get(text)) if colour else text
        padded.append(space + shown if to_right else shown + space)
    return "  ".join(padded)


def _rich_table(
    columns: Sequence[str], cells: Sequence[Sequence[str]], right: Sequence[bool]
) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for number, (name, to_right) in enumerate(zip(columns, right, strict=True)):
        # Only the last, a text, is folded: names, numbers and dates stay in one piece.
        last = number == len(columns) - 1
        drawn.add_column(
            name,
            justify="right" if to_right else "left",
            overflow="fold" if last else "ellipsis",
            no_wrap=not last,
        )
    for row in cells:
        # Text, not str: brackets in a message are no markup.
        drawn.add_row(*(Text(cell, style=STATE_COLOURS.get(cell, "")) for cell in row))
    Console(width=shutil.get_terminal_size().columns, no_color=not colours()).print(drawn)


def pairs(values: Sequence[tuple[str, Any]]) -> None:
    """Print names and values in two columns; lines of a long text are indented below the name."""
    width = max((len(name) for name, _ in values), default=0)
    for name, value in values:
        text = clean("-" if value is None else str(value), lines=True).rstrip()
        if "\n" in text:
            say(f"{name}:")
            for line in text.splitlines():
                say(f"    {line}")
        else:
            say(f"{name.ljust(width)}  {paint(text, STATE_COLOURS.get(text))}")


def short_id(task_id: str) -> str:
    """Return a UUID's last 8 characters on a terminal, where they are enough to name it."""
    return task_id[-8:] if sys.stdout.isatty() and len(task_id) == _UUID else task_id


class Counter:
    """Shows on stderr how far long work is: in place on a terminal, else a line now and then."""

    def __init__(self, label: str, total: int = 0) -> None:
        self._label = label
        self._total = total
        self._terminal = sys.stderr.isatty()
        self._apart_s = _PROGRESS_S if self._terminal else _PROGRESS_APART_S
        self._next_s = time.monotonic() + self._apart_s
        self._shown = False

    def __call__(self, count: int) -> None:
        """Take the count so far."""
        now_s = time.monotonic()
        if now_s < self._next_s:
            return
        self._next_s = now_s + self._apart_s
        self._shown = True
        start, end = ("\r", "") if self._terminal else ("", "\n")
        click.echo(f"{start}{self._label} {self._how_far(count)}{end}", nl=False, err=True)

    def _how_far(self, count: int) -> str:
        if not self._total:
            return f"{count:,}"
        share = min(1.0, count / self._total)
        full = round(share * _BAR)
        bar = f"[{'#' * full}{'.' * (_BAR - full)}] " if self._terminal else ""
        return f"{bar}{count:,} of {self._total:,} ({share:.0%})"

    def close(self) -> None:
        """Remove what is shown in place."""
        if self._shown and self._terminal:
            click.echo("\r\x1b[K", nl=False, err=True, color=True)


@contextmanager
def progress(label: str, total: int = 0) -> Iterator[Counter]:
    """Give a counter to report to while something may take long; with a total it shows a bar."""
    counter = Counter(label, total)
    try:
        yield counter
    finally:
        counter.close()


def suggestion(name: str, known: Sequence[str]) -> str:
    """Return ` (did you mean 'x'?)`, or the known names when they are few."""
    near = nearest(name, known)
    if near or not known or len(known) > 20:
        return near
    return f"; known: {', '.join(known)}"
