"""What went wrong with the file, in words that say which file and what to try."""

import os
import sqlite3
from typing import Literal

from taskq.errors import ConfigError, TaskqError

Reason = Literal["locked", "full", "read-only", "damaged", "io"]


class Trouble(TaskqError):
    """The database cannot be used now; drivers turn this into their own errors.

    Attributes:
        reason: `locked`, `full`, `read-only`, `damaged` or `io`.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["Trouble"], tuple[Reason, str]]:
        return type(self), (self.reason, self.detail)


def error_code(error: sqlite3.Error) -> int:
    """Return SQLite's primary result code, or 0 where the error is Python's own."""
    return int(getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF


def is_busy(error: sqlite3.Error) -> bool:
    """Return whether trying again soon may help."""
    return error_code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def is_fatal(error: sqlite3.Error) -> bool:
    """Return whether the connection is better opened anew."""
    return error_code(error) in (
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_READONLY,
    )


def explain(error: sqlite3.Error, path: str) -> Trouble:
    """Return the trouble that an SQLite error of a running database means."""
    code = error_code(error)
    if is_busy(error):
        return locked(path)
    if code == sqlite3.SQLITE_FULL:
        return Trouble("full", f"no space left for {path}; free some, or move the file")
    if code == sqlite3.SQLITE_READONLY:
        return Trouble(
            "read-only", f"{path} cannot be written; check its owner, its mode and the mount"
        )
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return Trouble(
            "damaged",
            f"{path} is damaged ({error}); stop the workers, keep a copy, "
            f"and try `sqlite3 {path} .recover`",
        )
    return Trouble("io", f"{path}: {error}; check the disk, the directory and its mode")


def locked(path: str) -> Trouble:
    """Return the trouble of a database that others kept locked until the deadline."""
    return Trouble(
        "locked",
        f"{path} stayed locked by another program; find it with `fuser {path}`, "
        "a shell or a backup may hold a transaction open",
    )


def explain_open(error: sqlite3.Error, path: str) -> TaskqError:
    """Return what an SQLite error at opening means: mostly a setting that no waiting cures."""
    code = error_code(error)
    if code == sqlite3.SQLITE_NOTADB:
        return ConfigError(
            f"{path} exists and is no SQLite database; name another file, or move this one away"
        )
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return unusable(path) or ConfigError(
            f"{path} cannot be opened ({error}); check that its directory can be written"
        )
    return explain(error, path)


def unusable(path: str) -> ConfigError | None:
    """Return why this process cannot write the file, or None where it seems able to."""
    directory = os.path.dirname(path)
    if not os.path.isdir(directory):
        return ConfigError(f"{path} cannot be made: there is no directory {directory}; make it")
    if os.path.isdir(path):
        return ConfigError(f"{path} is a directory; name a file in it")
    if os.path.exists(path) and not os.access(path, os.R_OK | os.W_OK):
        return ConfigError(f"{path} is read-only for this user; change its owner or mode")
    if not os.access(directory, os.W_OK | os.X_OK):
        return ConfigError(
            f"{path} cannot be used: its directory is read-only for this user, and SQLite keeps "
            "two more files there; change its owner or mode, or name another directory"
        )
    return None
