"""`task.sent`: what a client reports, in the same send as the messages themselves."""

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from taskq.brokers.base import Outgoing, Publishing
from taskq.config import Settings
from taskq.errors import DecodeError, PublishError
from taskq.events.bus import ProcessRecorder, Record
from taskq.events.redact import redacted


class SentReport:
    """Reports what is sent, in the same send; its own failure never fails the send."""

    def __init__(self, recorder: ProcessRecorder, settings: Settings) -> None:
        self._recorder = recorder
        self._settings = settings

    @property
    def order(self) -> AbstractContextManager[object]:
        """What is held while messages and their report are given to the broker."""
        if self._settings.events == "off":
            return nullcontext()
        self._recorder()
        return self._recorder.order

    def added_to(self, batch: Sequence[Outgoing]) -> Sequence[Outgoing]:
        """Return the messages with the report behind them, where there is one; in `order`."""
        if self._settings.events == "off" or not batch:
            return batch
        recorder = self._recorder()
        recorder.add([self._record(item) for item in batch])
        report = recorder.take()
        return batch if report is None else [*batch, report]

    def _record(self, item: Outgoing) -> Record:
        if not self._settings.event_arguments:
            return sent_record(item)
        return sent_record(item, self._arguments(item))

    def _arguments(self, item: Outgoing) -> dict[str, str]:
        from taskq.body import decode_call

        names = self._settings.redact
        try:
            call = decode_call(item.message)
        except DecodeError:
            return {}
        return {"args": redacted(call.args, names), "kwargs": redacted(call.kwargs, names)}


def sent_record(item: Outgoing, more: Mapping[str, Any] | None = None) -> Record:
    """Return the record of a message on its way to a queue, with further fields if there are."""
    message = item.message
    headers = message.headers
    expires = headers.get("expires")
    if item.due_ms or message.priority or expires:
        facts = {"due_ms": item.due_ms, "priority": message.priority, "expires": expires}
        more = {**(more or {}), **{name: fact for name, fact in facts.items() if fact}}
    now_us = time.time_ns() // 1000
    return (
        "task.sent",
        now_us,
        0,
        message.id,
        message.task,
        item.queue,
        0,
        headers.get("root_id") or "",
        headers.get("parent_id") or "",
        0,
        more,
    )


class Shortened:
    """A `Publishing` without the verdict on the report at its end."""

    def __init__(self, publishing: Publishing, count: int) -> None:
        self._publishing = publishing
        self._count = count

    def wait(self) -> list[PublishError | None]:
        """See `Publishing`."""
        return self._publishing.wait()[: self._count]

    async def wait_async(self) -> list[PublishError | None]:
        """See `Publishing`."""
        return (await self._publishing.wait_async())[: self._count]
