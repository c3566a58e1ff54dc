"""From ticks that are due to tasks that are sent: claim, overlap, publish, settle."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from taskq import clock, outcome
from taskq.app import TaskQ
from taskq.canvas import Signature
from taskq.errors import AlreadyQueued, ConfigError, PublishError, ResultsUnavailable
from taskq.results.base import decode_record
from taskq.scheduler.plan import Job
from taskq.schedules.entry import Entry, tick_id
from taskq.schedules.store import Claim, Mark, Status

log = logging.getLogger("taskq.scheduler")

Kind = Literal["fired", "skipped", "missed", "queued", "refused"]
Tell = Callable[..., None]

_STARTED: Final = frozenset({*outcome.TERMINAL, outcome.RECEIVED, outcome.STARTED, outcome.RETRY})


@dataclass(slots=True)
class Tick:
    """A tick that is to be sent.

    Attributes:
        job: Whose.
        due_ms: When it is due, as epoch ms.
        task_id: Its id, which is the task's.
        open: Whether another leader claimed it and may have sent it.
        other: Id of a task that is there in its place, where the task is unique; empty for none.
    """

    job: Job
    due_ms: int
    task_id: str
    open: bool = False
    other: str = ""

    def claim(self) -> Claim:
        """Return what the store is asked for."""
        return Claim(self.job.row.name, self.due_ms, self.task_id)


class Sender:
    """Decides on overlaps, sends ticks, and says what became of each."""

    def __init__(self, app: TaskQ, tell: Tell) -> None:
        self._app = app
        self._tell = tell

    def tick(self, job: Job, due_ms: int) -> Tick:
        """Return a job's tick."""
        return Tick(job, due_ms, tick_id(self._app.name, job.row.name, due_ms))

    def states(self, task_ids: Iterable[str]) -> dict[str, str]:
        """Return the states of tasks, `UNKNOWN` for those without record; one round trip.

        Raises:
            ResultsUnavailable: If the store cannot be reached.
        """
        wanted = [task_id for task_id in dict.fromkeys(task_ids) if task_id]
        store = self._app.results
        if store is None or not wanted:
            return {}
        found = zip(wanted, store.fetch(wanted), strict=True)
        return {
            task_id: outcome.UNKNOWN if data is None else decode_record(data).state
            for task_id, data in found
        }

    def overlapping(self, jobs: Sequence[Job]) -> set[str]:
        """Return the names of those jobs whose last run has not ended, where that matters."""
        asked = {
            job.row.name: job.row.last_id
            for job in jobs
            if job.entry is not None and job.entry.overlap != "allow" and job.row.last_id
        }
        states = self.states(asked.values())
        return {name for name, task_id in asked.items() if _runs(states.get(task_id))}

    def admit(self, job: Job, due: Sequence[int], runs: bool, marks: list[Mark]) -> list[Tick]:
        """Return the ticks of a job that may be sent now; the others get their mark.

        Args:
            job: The job.
            due: Its ticks, in order.
            runs: Whether its last run has not ended.
            marks: Where marks are added.
        """
        entry = job.entry
        if entry is None:
            return []
        admitted: list[Tick] = []
        if job.row.queued_ms and not runs:
            # It waited for the run that has just ended; a later tick must not overtake it.
            admitted.append(self.tick(job, job.row.queued_ms))
        left = entry.max_runs - job.row.fired if entry.max_runs else len(due)
        for due_ms in due:
            if len(admitted) >= left:
                break
            busy = runs or bool(admitted)
            if busy and entry.overlap == "queue_one" and not job.row.queued_ms:
                job.row = job.row._replace(queued_ms=due_ms)
                marks.append(Mark(job.row.name, due_ms, queued=True))
                self._tell("queued", job.row.name, due_ms)
            elif busy and entry.overlap in ("skip", "queue_one"):
                job.row = job.row._replace(skipped=job.row.skipped + 1)
                marks.append(Mark(job.row.name, due_ms, skipped=1))
                self._tell("skipped", job.row.name, due_ms, reason="the run before has not ended")
            else:
                if runs and entry.overlap == "cancel_running":
                    self._cancel(job)
                admitted.append(self.tick(job, due_ms))
            job.row = job.row._replace(cursor_ms=due_ms)
        return admitted

    def _cancel(self, job: Job) -> None:
        try:
            self._app.cancel(job.row.last_id)
        except ResultsUnavailable as error:
            log.warning("schedule %r: cannot cancel its last run: %s", job.row.name, error)

    def send(self, ticks: Sequence[Tick], marks: list[Mark]) -> list[Tick]:
        """Send ticks whose claims are ours; return those that no broker has confirmed.

        Args:
            ticks: What to send.
            marks: Where the marks of those that are settled are added.
        """
        states = self.states(tick.task_id for tick in ticks if tick.open)
        fresh = []
        for tick in ticks:
            if tick.open and self._was_sent(states.get(tick.task_id)):
                self._fired(tick, marks, again=True)
            else:
                fresh.append(tick)
        try:
            failed = self._publish(fresh)
        # One of them cannot be sent at all, for whatever reason a middleware may have too; the
        # others must not wait for it.
        except Exception:
            failed = []
            fresh = [tick for tick in fresh if self._publish_alone(tick, marks, failed)]
        lost = {tick.task_id for tick in failed}
        for tick in fresh:
            if tick.other:
                name = tick.job.row.name
                tick.job.row = tick.job.row._replace(skipped=tick.job.row.skipped + 1)
                marks.append(Mark(name, tick.due_ms, skipped=1, settled=tick.task_id))
                self._tell("skipped", name, tick.due_ms, reason=f"{tick.other} is there already")
            elif tick.task_id not in lost:
                self._fired(tick, marks)
        return failed

    def _was_sent(self, state: str | None) -> bool:
        if state is None or state == outcome.UNKNOWN:
            return False
        store = self._app.results
        # A mark that is derived from the queue itself proves a message, others are best effort.
        derived = store is not None and store.covers(self._app.broker.url)
        return state in _STARTED or derived

    def _publish(self, ticks: Sequence[Tick]) -> list[Tick]:
        calls = [signature(tick) for tick in ticks]
        if not calls:
            return []
        try:
            for tick, handle in zip(ticks, self._app.send(calls), strict=True):
                tick.other = handle.id if handle.id != tick.task_id else ""
        except ResultsUnavailable as error:
            log.warning("not sent ticks=%d, trying again: %s", len(ticks), error)
            return list(ticks)
        except PublishError as error:
            failed = set(error.failed_ids)
            found = [tick for tick in ticks if tick.task_id in failed]
            if len(found) < len(failed):
                # A message of someone's middleware failed, and none of these was sent.
                found = list(ticks)
            log.warning("not sent ticks=%d, trying again: %s", len(found), error)
            return found
        return []

    def _publish_alone(self, tick: Tick, marks: list[Mark], failed: list[Tick]) -> bool:
        """Send one tick; return False when it cannot be sent, now or ever."""
        try:
            failed += self._publish([tick])
        except AlreadyQueued as error:
            tick.other = error.task_id
        except Exception as error:
            name = tick.job.row.name
            said = f"{type(error).__name__}: {error}"
            self._tell("refused", name, tick.due_ms, reason=said)
            marks.append(Mark(name, tick.due_ms, settled=tick.task_id))
            tick.job.trouble = f"its task cannot be sent: {said}"
            return False
        return True

    def _fired(self, tick: Tick, marks: list[Mark], *, again: bool = False) -> None:
        row = tick.job.row
        queued_ms = 0 if row.queued_ms == tick.due_ms else row.queued_ms
        tick.job.row = row._replace(fired=row.fired + 1, last_id=tick.task_id, queued_ms=queued_ms)
        marks.append(Mark(row.name, tick.due_ms, fired=tick.task_id))
        reason = "another leader had sent it" if again else ""
        self._tell("fired", row.name, tick.due_ms, task_id=tick.task_id, reason=reason)


def ours(ticks: Sequence[Tick], statuses: Sequence[Status]) -> list[Tick]:
    """Return the ticks that are ours to send."""
    found = []
    for tick, status in zip(ticks, statuses, strict=True):
        tick.open = status == "open"
        if status != "done":
            found.append(tick)
        elif tick.job.row.queued_ms == tick.due_ms:
            tick.job.row = tick.job.row._replace(queued_ms=0)
    return found


def signature(tick: Tick) -> Signature[Any]:
    """Return the call of a tick; the task finds its schedule in `self.request.headers`."""
    entry = tick.job.entry
    if entry is None:
        raise ConfigError(f"schedule {tick.job.row.name!r} cannot be read")
    return call_of(entry, tick.due_ms).set(task_id=tick.task_id)


def call_of(entry: Entry, due_ms: int) -> Signature[Any]:
    """Return the call that an entry stands for at a moment."""
    headers = {
        **(entry.options.get("headers") or {}),
        "schedule": entry.name,
        "scheduled_for": clock.to_iso(due_ms),
    }
    options = {**entry.options, "headers": headers}
    return Signature(entry.task, entry.args, dict(entry.kwargs), options)


def _runs(state: str | None) -> bool:
    return state not in (None, outcome.UNKNOWN) and state not in outcome.TERMINAL
