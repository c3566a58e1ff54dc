"""One message in, one ending out: decode, call under middleware, encode.

The Runner neither reads nor sends frames and knows no threads; the executor drives it.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from taskq import clock, codecs, outcome
from taskq.body import Call, decode_call
from taskq.canvas import next_outgoing
from taskq.envelope import Envelope, read_envelope
from taskq.errors import (
    DecodeError,
    EncodeError,
    Ignore,
    KeyExpressionFailed,
    Reject,
    Retry,
    TaskCancelled,
)
from taskq.message import Message
from taskq.request import Request, current
from taskq.retry import retry_after_s
from taskq.worker import endings
from taskq.worker.answers import answer
from taskq.worker.endings import Case, Ending
from taskq.worker.limits import Interrupted
from taskq.worker.registry import Registry, Runnable

_NIL = codecs.dumps(None)


@dataclass(slots=True)
class Job:
    """A decoded message, ready to run.

    Attributes:
        case: The delivery for endings.
        runnable: What to run.
        request: What the task can know of its call.
        call: Its arguments and what follows.
        soft_limit_s: Seconds until SoftTimeLimitExceeded; None for none.
    """

    case: Case
    runnable: Runnable
    request: Request
    call: Call
    soft_limit_s: float | None


class Runner:
    """Turns messages into endings, for one app."""

    def __init__(self, registry: Registry, worker: str) -> None:
        self._registry = registry
        self._worker = worker
        hooks = registry.hooks
        self._on_start = hooks.has_listeners("task_start")
        self._on_success = hooks.has_listeners("task_success")
        self._shown = registry.shown

    def decode(self, message: Message, queue: str, redelivered: bool) -> Job | Ending:
        """Return the job of a message, or the ending of one that cannot be run."""
        runnable = self._registry.find(message.task)
        info = None if runnable is None else runnable.info
        try:
            envelope = read_envelope(message)
        except DecodeError as error:
            case = Case(message, Envelope(), info, queue, self._worker, self._registry.results)
            return endings.malformed(case, error)
        results = self._registry.results
        if runnable is None or info is None:
            case = Case(message, envelope, info, queue, self._worker, results)
            return endings.malformed(case, DecodeError(f"unknown task {message.task!r}"))
        if envelope.expires_ms and clock.now_ms() >= envelope.expires_ms:
            # It was in time when the worker took it, and waited here too long.
            case = Case(message, envelope, info, queue, self._worker, results)
            return endings.final(case, outcome.EXPIRED, None)
        try:
            call = decode_call(message)
        except DecodeError as error:
            case = Case(message, envelope, info, queue, self._worker, results)
            return endings.malformed(case, error)
        case = Case(message, envelope, info, queue, self._worker, results, call.embed)
        held_back = self._without_keys(case, runnable, call)
        if held_back is not None:
            return held_back
        request = Request(
            message.id,
            message.task,
            queue,
            tuple(call.args),
            call.kwargs,
            envelope.spent,
            info.max_retries,
            envelope.root_id or message.id,
            envelope.parent_id,
            message.headers,
            message.priority,
            redelivered,
            self._worker,
        )
        soft = envelope.soft_time_limit_s
        limit = info.soft_time_limit_s if soft is None else soft
        if envelope.deadline_ms:
            left_s = max(0.001, (envelope.deadline_ms - clock.now_ms()) / 1000)
            limit = left_s if limit is None else min(limit, left_s)
        return Job(case, runnable, request, call, limit)

    def _without_keys(self, case: Case, runnable: Runnable, call: Call) -> Ending | None:
        """Return what becomes of a message that lacks the keys of its task's limits, else None.

        Such a message, Celery's say, was not judged by any limit, so it does not run: it goes back
        to its queue with them.
        """
        try:
            keys = runnable.missing_keys(case.message.headers, call)
        except KeyExpressionFailed as error:
            if not runnable.fits(call.args, call.kwargs):
                return endings.malformed(case, TypeError("the arguments do not fit the function"))
            return endings.final(case, outcome.FAILURE, outcome.describe(error), us=1)
        return None if keys is None else endings.keyed(case, keys)

    def run(self, job: Job, call: Callable[[Request], Any]) -> Ending:
        """Run a job on this thread.

        Args:
            job: From `decode`.
            call: `job.runnable.call`, or what the executor wrapped around it.
        """
        request = job.request
        token = current.set(request)
        start_ns = time.perf_counter_ns()
        try:
            if self._on_start:
                self._registry.hooks.emit("task_start", request)
            value = call(request)
            us = (time.perf_counter_ns() - start_ns) // 1000
            return self._succeed(job, value, us)
        # Any BaseException of the user's code (SystemExit, KeyboardInterrupt, MemoryError,
        # GeneratorExit) ends the task, never the executor.
        except BaseException as error:
            us = (time.perf_counter_ns() - start_ns) // 1000
            return self._fail(job, error, max(us, 1))
        finally:
            current.reset(token)

    async def arun(self, job: Job, call: Callable[[Request], Any]) -> Ending:
        """Run a job on this loop; `call` returns an awaitable. See `run`."""
        request = job.request
        token = current.set(request)
        start_ns = time.perf_counter_ns()
        try:
            if self._on_start:
                self._registry.hooks.emit("task_start", request)
            value = await call(request)
            us = (time.perf_counter_ns() - start_ns) // 1000
            return self._succeed(job, value, us)
        # See `run`; a cancelled coroutine ends here too.
        except BaseException as error:
            us = (time.perf_counter_ns() - start_ns) // 1000
            return self._fail(job, error, max(us, 1))
        finally:
            current.reset(token)

    def _succeed(self, job: Job, value: Any, us: int) -> Ending:
        case = job.case
        info = job.runnable.info
        asked = case.message.reply_to
        keep = case.results and info.keep_value and not case.envelope.ignore_result
        encoded = None
        if keep or asked:
            encoded = _NIL if value is None else codecs.dumps(value)
        embed = job.call.embed
        follow = []
        if embed.chain or embed.callbacks:
            root_id = job.request.root_id
            follow = next_outgoing(case.message, embed, value, case.queue, root_id)
        if asked:
            follow += answer(case.message, outcome.SUCCESS, encoded)
            encoded = encoded if keep else None
        if self._on_success:
            self._registry.hooks.emit("task_success", job.request, value)
        ending = endings.succeeded(case, encoded, follow, us)
        if self._shown is not None:
            size_bytes = len(codecs.dumps(value) if encoded is None else encoded)
            ending.detail = f"{size_bytes} {self._shown(value)}"
        return ending

    def _fail(self, job: Job, error: BaseException, us: int) -> Ending:
        case = job.case
        if isinstance(error, Interrupted):
            return Ending(endings.REQUEUED, runtime_us=us)
        if isinstance(error, Ignore):
            return Ending(endings.IGNORED, runtime_us=us)
        if isinstance(error, Reject):
            if error.requeue:
                return Ending(endings.REQUEUED, runtime_us=us)
            self._notify("task_failure", job, error)
            return endings.rejected(case, error.reason, us)
        if isinstance(error, asyncio.CancelledError | TaskCancelled):
            return endings.final(case, outcome.CANCELLED, None, us=us)
        if isinstance(error, TypeError) and not job.runnable.fits(job.call.args, job.call.kwargs):
            # The arguments do not fit the function, so it never ran: retrying cannot help.
            return endings.malformed(case, error)
        ending = self._attempt(job, error, us)
        cause = error.cause if isinstance(error, Retry) and error.cause is not None else error
        ending.tripped = job.runnable.trips(cause)
        retrying = ending.code == outcome.RETRY
        self._notify("task_retry" if retrying else "task_failure", job, error)
        return ending

    def _attempt(self, job: Job, error: BaseException, us: int) -> Ending:
        if isinstance(error, Retry):
            cause = error.cause if error.cause is not None else error
            described = outcome.describe(cause, skip_frames=2)
            return endings.failed(
                job.case,
                described,
                True,
                us=us,
                countdown_s=error.countdown_s,
                max_retries=error.max_retries,
            )
        described = outcome.describe(error, skip_frames=2)
        # What cannot be encoded today cannot be encoded by the next attempt either.
        retryable = not isinstance(error, EncodeError) and job.runnable.retries(error)
        asked_s = retry_after_s(error, clock.now_ms() / 1000) if retryable else None
        return endings.failed(job.case, described, retryable, us=us, countdown_s=asked_s)

    def _notify(self, event: str, job: Job, error: BaseException) -> None:
        if self._registry.hooks.has_listeners(event):
            self._registry.hooks.emit(event, job.request, error)
