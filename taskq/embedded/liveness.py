"""Whether the process that holds a lease is known to be dead, before its lease runs out."""

import os
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True, slots=True)
class Process:
    """A process, told apart from later ones with the same number.

    Attributes:
        place: Boot and process namespace that `pid` counts in; empty where unknown.
        pid: Its number.
        start: When it began, in clock ticks since boot; 0 where unknown.
    """

    place: str
    pid: int
    start: int


def this_process() -> Process:
    """Return the calling process."""
    pid = os.getpid()
    return Process(_place(), pid, _start_of(pid) or 0)


def is_dead(process: Process) -> bool:
    """Return whether a process has certainly ended; False where that cannot be known from here."""
    if not process.place or process.place != _place() or process.start == 0:
        return False
    # A number that was given to a later process, or to nobody.
    return _start_of(process.pid) != process.start


@cache
def _place() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _start_of(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name, in parentheses, may itself hold spaces and parentheses.
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    # A zombie runs nothing any more; its parent just has not looked yet.
    return None if fields[0] in (b"Z", b"X") else int(fields[19])
