"""What the tasks of `limits_app` wrote."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from fleet import Fleet

APP = "limits_app:app"


@dataclass(frozen=True)
class Line:
    """One line of a run."""

    id: str
    key: str
    word: str
    at_s: float


def lines(fleet: Fleet, key: str = "") -> list[Line]:
    """Return what was written so far, of all keys or of one, by time."""
    try:
        found = fleet.runs_path.read_text().splitlines()
    except FileNotFoundError:
        return []
    parts = [line.rsplit(" ", 3) for line in found]
    every = [Line(own, name, word, float(at)) for own, name, word, at in parts]
    return sorted((line for line in every if key in ("", line.key)), key=lambda line: line.at_s)


def most_at_once(found: list[Line]) -> dict[str, int]:
    """Return by key how many ran at one time at most."""
    running: dict[str, set[str]] = defaultdict(set)
    most: dict[str, int] = defaultdict(int)
    for line in found:
        if line.word == "start":
            running[line.key].add(line.id)
            most[line.key] = max(most[line.key], len(running[line.key]))
        else:
            running[line.key].discard(line.id)
    return dict(most)


def send_raw(fleet: Fleet, name: str, *args: Any, task_id: str, **kwargs: Any) -> None:
    """Send a message as another program does: without the header of keys."""
    from taskq.body import encode_call
    from taskq.brokers.base import Outgoing

    message = encode_call(name, task_id, args, kwargs)
    assert fleet.app.broker.publish([Outgoing("default", message)], 10.0) == [None]
