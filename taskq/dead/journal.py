"""What was done to dead letters, and by whom: a file of JSON lines for each replay, edit or drop.

The first line says what is to be done, the second to which letters; both are on the disk before the
first letter is touched, so that a replay that is killed can be gone on with, by the same choice.
"""

import contextlib
import getpass
import json
import os
import re
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from taskq import clock
from taskq.errors import ConfigError

Key = tuple[str, int, str, int]
"""What tells a letter from others; `DeadLetter.key`."""

_NAME: Final = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9a-f]{6}")
_KEPT: Final = 1000
"""Journals of older jobs that have ended are removed."""


@dataclass(slots=True)
class Journal:
    """One job.

    Attributes:
        job: Its name: date, time and a random part.
        path: Its file.
        head: What is to be done: `action, at, user, host, broker, prefix`, and what the action
            needs.
        keys: The letters it is done to.
        sent: Ids of the messages that were sent, or were about to be.
        ended: The last line of a job that has ended, else None.
    """

    job: str
    path: Path
    head: Mapping[str, Any]
    keys: set[Key]
    sent: list[str]
    ended: Mapping[str, Any] | None = None

    @property
    def running(self) -> bool:
        """Whether the process that wrote it seems to be at it still."""
        pid = self.head.get("pid")
        if self.ended is not None or self.head.get("host") != socket.gethostname():
            return False
        return isinstance(pid, int) and pid != os.getpid() and Path(f"/proc/{pid}").exists()

    def note(self, **entry: Any) -> None:
        """Add a line.

        Raises:
            ConfigError: If it cannot be written.
        """
        # The line in front may be half: of a process that was killed.
        line = "\n" + json.dumps({"at": clock.to_iso(clock.now_ms()), **entry}) + "\n"
        try:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(line)
        except OSError as error:
            raise _unusable(self.path, error) from error
        self.sent += entry.get("sent", ())
        if "ended" in entry:
            self.ended = entry


class Journals:
    """The journals of one user on this machine."""

    def __init__(self, state_dir: str = "") -> None:
        """Choose the directory; it is made when the first journal is written.

        Args:
            state_dir: See `taskq.config.Settings`; empty for the user's own.
        """
        self.directory = state_directory(state_dir) / "dead"

    def begin(self, action: str, keys: Iterable[Key], **head: Any) -> Journal:
        """Write down what is to be done.

        Args:
            action: `replay`, `edit`, `drop` or `import`.
            keys: The letters.
            **head: What else must be known to go on with it, or to understand it later.

        Raises:
            ConfigError: If the directory cannot be written.
        """
        # With microseconds: the names of two jobs of one second sort as they began.
        seconds, nanoseconds = divmod(time.time_ns(), 10**9)
        job = time.strftime("%Y%m%d-%H%M%S-", time.gmtime(seconds)) + f"{nanoseconds // 1000:06}"
        journal = Journal(
            job,
            self.directory / f"{job}.jsonl",
            {
                "action": action,
                "at": clock.to_iso(clock.now_ms()),
                "user": _user(),
                "host": socket.gethostname(),
                "pid": os.getpid(),
                **head,
            },
            set(keys),
            [],
        )
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._prune()
            _write(journal)
        except OSError as error:
            raise _unusable(self.directory, error) from error
        return journal

    def load(self, job: str) -> Journal:
        """Return the journal of a job.

        Raises:
            ConfigError: If there is none of that name, or it cannot be read.
        """
        path = self.directory / f"{job}.jsonl"
        if not _NAME.fullmatch(job) or not path.is_file():
            raise ConfigError(f"there is no journal of a job {job!r} in {self.directory}")
        try:
            return _read(job, path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path} is no journal that this taskq can read: {error}") from error

    def all(self) -> Iterator[Journal]:
        """Yield all journals that can be read, oldest first."""
        for path in sorted(self._files()):
            with contextlib.suppress(ConfigError):
                yield self.load(path.stem)

    def unfinished(self, broker: str, prefix: str) -> list[Journal]:
        """Return the replays on a broker that have not ended, oldest first.

        Args:
            broker: The broker's `url`.
            prefix: Its prefix.
        """
        return [
            journal
            for journal in self.all()
            if journal.ended is None
            and journal.head.get("resumable")
            and (journal.head.get("broker"), journal.head.get("prefix")) == (broker, prefix)
        ]

    def _files(self) -> list[Path]:
        if not self.directory.is_dir():
            return []
        return [path for path in self.directory.glob("*.jsonl") if _NAME.fullmatch(path.stem)]

    def _prune(self) -> None:
        files = sorted(self._files())
        for path in files[: max(0, len(files) - _KEPT)]:
            with contextlib.suppress(ConfigError, OSError):
                if self.load(path.stem).ended is not None:
                    path.unlink()


def state_directory(named: str = "") -> Path:
    """Return where taskq keeps what must outlive a process: `named`, or the user's own."""
    if named:
        return Path(named).expanduser()
    base = os.environ.get("XDG_STATE_HOME", "")
    if base.startswith("/"):
        return Path(base) / "taskq"
    try:
        return Path.home() / ".local" / "state" / "taskq"
    except RuntimeError as error:
        raise ConfigError("this user has no home directory; set TASKQ_STATE_DIR") from error


def _write(journal: Journal) -> None:
    part = journal.path.with_suffix(".part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as stream:
        stream.write(json.dumps(dict(journal.head)) + "\n")
        stream.write(json.dumps({"keys": sorted(journal.keys)}) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    part.rename(journal.path)


def _read(job: str, path: Path) -> Journal:
    with path.open(encoding="utf-8") as stream:
        head, keys = json.loads(stream.readline()), json.loads(stream.readline())["keys"]
        journal = Journal(job, path, head, {(i, at, q, n) for i, at, q, n in keys}, [])
        for line in stream:
            # The last line of a process that was killed may be half.
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                journal.sent += entry.get("sent", ())
                journal.ended = entry if "ended" in entry else journal.ended
    return journal


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _unusable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"cannot write the journal {path}: {error.strerror}; nothing was changed. "
        "Set TASKQ_STATE_DIR to a directory that can be written"
    )
