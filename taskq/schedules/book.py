"""`app.schedules`: declaring schedules, and looking after those in the store."""

import json
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Any, Protocol

from taskq import clock
from taskq.calls import prepare
from taskq.canvas import Sender, Signature
from taskq.config import Settings, nearest
from taskq.errors import ConfigError, EncodeError
from taskq.result import AsyncResult
from taskq.schedules.base import Schedule, to_ms
from taskq.schedules.entry import MAX_AGE_S, CatchUp, Entry, Overlap, limit_ms
from taskq.schedules.file import read_entries
from taskq.schedules.info import ScheduleInfo, info_of
from taskq.schedules.store import ScheduleStore, open_schedules
from taskq.schedules.words import Preview, preview_of
from taskq.task import BaseTask

_declaring: ContextVar[bool] = ContextVar("taskq_declaring", default=False)


class ScheduleOwner(Sender, Protocol):
    """What the book needs of its app."""

    name: str
    settings: Settings

    @property
    def tasks(self) -> Mapping[str, BaseTask[Any, Any]]:
        """All tasks by name."""


@contextmanager
def declaring() -> Iterator[None]:
    """Let `app.schedules.add` declare in this block, as it does while a module is imported."""
    token = _declaring.set(True)
    try:
        yield
    finally:
        _declaring.reset(token)


def _is_importing() -> bool:
    """Return whether a module is being imported: then a call is a declaration."""
    if _declaring.get():
        return True
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        # What the import system itself goes by, to tell a module that is not complete yet.
        spec = frame.f_globals.get("__spec__")
        if frame.f_code.co_name == "<module>" and getattr(spec, "_initializing", False):
            return True
    return False


class ScheduleBook:
    """The schedules of one app: `app.schedules`.

    Those in code (`@app.task(schedule=...)`, and `add` while a module is imported) and those in
    taskq.toml are declared: a scheduler makes the store what they say when it starts. Those that
    are added at run time are dynamic: they are stored at once and stay until they are removed.
    """

    def __init__(self, app: ScheduleOwner) -> None:
        self._app = app
        self._declared: dict[str, Entry] = {}
        self._store: ScheduleStore | None = None
        self._lock = threading.Lock()

    @property
    def store(self) -> ScheduleStore:
        """Where schedules are kept: beside the results, or in the embedded broker's file.

        Raises:
            ConfigError: If the app has no such place.
        """
        with self._lock:
            if self._store is None:
                settings = self._app.settings
                url = settings.results
                if url is None and (settings.broker or "").startswith(("sqlite:", "memory:")):
                    url = settings.broker
                if url is None:
                    raise ConfigError(
                        "schedules need a store beside the broker: set `results=` or TASKQ_RESULTS "
                        "to a redis:// or sqlite:/// URL"
                    )
                self._store = open_schedules(url, self._app.name, settings.results_timeout_s)
            return self._store

    def close(self) -> None:
        """Close the store; it opens again when used again."""
        with self._lock:
            store, self._store = self._store, None
        if store is not None:
            store.close()

    def add(
        self,
        name: str,
        task: "str | BaseTask[Any, Any]",
        schedule: Schedule,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        catch_up: CatchUp = "all",
        max_age_s: float = MAX_AGE_S,
        overlap: Overlap = "allow",
        starting_at: datetime | None = None,
        until: datetime | None = None,
        max_runs: int = 0,
        dynamic: bool | None = None,
        replace: bool = False,
        **options: Any,
    ) -> Entry:
        """Declare a schedule, or store a dynamic one.

        Args:
            name: Unique within the app.
            task: The task, or its registered name.
            schedule: `crontab(...)`, `every(...)` or `once(...)`.
            args: Positional arguments.
            kwargs: Keyword arguments.
            catch_up: What becomes of ticks while no scheduler ran: `all`, `last` or `skip`.
            max_age_s: Ticks older than so many seconds are missed in any case.
            overlap: What becomes of a tick while the run before it has not ended: `allow`, `skip`,
                `queue_one` or `cancel_running`.
            starting_at: No tick before this moment.
            until: No tick after this moment.
            max_runs: At most so many ticks are sent; 0 for any number.
            dynamic: True stores it at once, False declares it; by default it is declared while a
                module is imported, and stored from a running program.
            replace: Whether a stored one of that name is replaced.
            **options: What `apply_async` takes, such as `queue` or `priority`.

        Raises:
            ConfigError: If a value cannot be used, the task is not known, its arguments do not fit,
                or the name is taken.
            EncodeError: If an argument has no form in JSON.
            ResultsUnavailable: If the store of a dynamic one cannot be reached.
        """
        stored = not _is_importing() if dynamic is None else dynamic
        entry = Entry(
            name=name,
            task=task.name if isinstance(task, BaseTask) else task,
            schedule=schedule,
            args=tuple(args),
            kwargs=dict(kwargs or {}),
            options={key: value for key, value in options.items() if value is not None},
            catch_up=catch_up,
            max_age_s=max_age_s,
            overlap=overlap,
            starting_at_ms=limit_ms(starting_at),
            until_ms=limit_ms(until),
            max_runs=max_runs,
            source="dynamic" if stored else "code",
        )
        return self._put(entry, replace) if stored else self._declare(entry)

    def _declare(self, entry: Entry) -> Entry:
        known = self._declared.get(entry.name)
        # A file that is imported under two names declares everything twice, and the same.
        if known is not None and known != entry:
            raise ConfigError(f"schedule {entry.name!r} is declared twice; give one another name")
        entry.to_text()
        self._declared[entry.name] = entry
        return entry

    def _put(self, entry: Entry, replace: bool) -> Entry:
        self.check(entry)
        if not self.store.put(entry.name, entry.to_text(), self._now_ms(), replace=replace):
            raise ConfigError(f"there is a schedule {entry.name!r}; remove it first, or replace it")
        return entry

    def _now_ms(self) -> int:
        """Return the time by the store's clock, which is the schedulers'."""
        return self.store.beat("", 0, 1, take=False).now_ms

    def declared(self) -> dict[str, Entry]:
        """Return what code and taskq.toml declare, by name, checked.

        Raises:
            ConfigError: If two have one name, or a task or an argument does not fit.
        """
        found: dict[str, Entry] = {}
        by_task = (
            Entry(name=task.name, task=task.name, schedule=task.spec.schedule, source="code")
            for task in self._app.tasks.values()
            if task.spec.schedule is not None
        )
        for entry in (*by_task, *self._declared.values(), *read_entries()):
            if entry.name in found:
                raise ConfigError(
                    f"schedule {entry.name!r} is declared twice, in {found[entry.name].source} "
                    f"and {entry.source}; give one another name"
                )
            self.check(entry)
            found[entry.name] = entry
        return found

    def check(self, entry: Entry) -> None:
        """Find out whether an entry can be sent, without sending it.

        Raises:
            ConfigError: If its task is not known, or arguments or options do not fit.
        """
        tasks = self._app.tasks
        task = tasks.get(entry.task)
        if task is None and tasks:
            raise ConfigError(
                f"schedule {entry.name!r}: task {entry.task!r} is not registered"
                f"{nearest(entry.task, tasks)}; import its module (setting `imports`)"
            )
        if entry.overlap != "allow" and self._app.settings.results is None:
            raise ConfigError(
                f"schedule {entry.name!r}: overlap={entry.overlap!r} needs a results store, which "
                "knows whether a run has ended; set `results=` or TASKQ_RESULTS"
            )
        try:
            if task is not None:
                task.check_arguments(entry.args, entry.kwargs)
            call: Signature[Any] = Signature(
                entry.task, entry.args, dict(entry.kwargs), dict(entry.options)
            )
            prepare(call, lambda name: task.defaults if task else {}, self._app.settings)
        except (TypeError, ConfigError, EncodeError) as error:
            raise ConfigError(f"schedule {entry.name!r} cannot be sent: {error}") from error

    def ls(self) -> list[ScheduleInfo]:
        """Return all schedules in the store, by name.

        What is declared enters the store when a scheduler starts.
        """
        return [info_of(row) for row in sorted(self.store.changed(0)[1]) if row.text]

    def get(self, name: str) -> ScheduleInfo:
        """Return a schedule in the store.

        Raises:
            ConfigError: If there is none of that name.
        """
        (row,) = self.store.rows([name])
        if row is None:
            raise self._unknown(name)
        return info_of(row)

    def _unknown(self, name: str) -> ConfigError:
        known = [row.name for row in self.store.changed(0)[1] if row.text]
        hint = nearest(name, known) or "; a scheduler that starts stores what code declares"
        return ConfigError(f"there is no schedule {name!r}{hint}")

    def pause(self, name: str, why: str = "") -> None:
        """Let a schedule rest until it is resumed, across restarts and deploys.

        Raises:
            ConfigError: If there is none of that name.
        """
        note = json.dumps({"why": why, "at": clock.to_iso(clock.now_ms())})
        self._known(self.store.pause(name, note, self._now_ms()), name)

    def resume(self, name: str) -> None:
        """Resume a schedule; what was due meanwhile is not made up for.

        Raises:
            ConfigError: If there is none of that name.
        """
        self._known(self.store.pause(name, "", self._now_ms()), name)

    def remove(self, name: str) -> None:
        """Remove a dynamic schedule.

        Raises:
            ConfigError: If there is none of that name, or code declares it and would add it again.
        """
        info = self.get(name)
        source = "dynamic" if info.entry is None else info.entry.source
        if source != "dynamic" and name in self.declared():
            raise ConfigError(
                f"schedule {name!r} is declared in {source}, and would come back; "
                "remove it there, or pause it"
            )
        self._known(self.store.remove(name), name)

    def _known(self, there: bool, name: str) -> None:
        if not there:
            raise self._unknown(name)

    def run(self, name: str) -> AsyncResult[Any]:
        """Send a schedule's task now, besides its ticks, and return its handle.

        Raises:
            ConfigError: If there is none of that name, or it cannot be read.
            PublishError: If the broker did not confirm in time.
        """
        info = self.get(name)
        if info.entry is None:
            raise ConfigError(info.trouble)
        entry = info.entry
        headers = {**(entry.options.get("headers") or {}), "schedule": name}
        options = {**entry.options, "headers": headers}
        return self._app.send([Signature(entry.task, entry.args, dict(entry.kwargs), options)])[0]

    def preview(
        self, schedule: "str | Schedule", count: int = 5, after: datetime | None = None
    ) -> Preview:
        """Say in words when a schedule is due, and list the next ticks.

        Args:
            schedule: A schedule, or the name of one that is declared or stored.
            count: How many ticks.
            after: Those later than this moment; now by default.

        Raises:
            ConfigError: If there is none of that name.
        """
        after_ms = clock.now_ms() if after is None else to_ms(after)
        if isinstance(schedule, Schedule):
            return preview_of(schedule, schedule.next_ms, after_ms, count)
        entry = self._declared.get(schedule)
        if entry is None:
            task = self._app.tasks.get(schedule)
            if task is not None and task.spec.schedule is not None:
                entry = Entry(name=schedule, task=schedule, schedule=task.spec.schedule)
        if entry is None:
            info = self.get(schedule)
            if info.entry is None:
                raise ConfigError(info.trouble)
            entry = info.entry
        entry = entry.bound()
        return preview_of(entry.schedule, entry.next_ms, after_ms, count)
