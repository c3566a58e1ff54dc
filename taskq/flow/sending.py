"""The sender's side of flow control: keys into the header, and claims of unique tasks.

Both happen where a task is sent, so that workers decode nothing to learn a key, and a second call
of a unique task sends no message at all.
"""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from taskq.brokers.base import Publishing
from taskq.calls import Prepared
from taskq.errors import AlreadyQueued, ConfigError, PublishError, ResultsUnavailable
from taskq.message import CLAIMED, KEYS, SENT_AT
from taskq.task import BaseTask

if TYPE_CHECKING:
    from taskq.flow.declared import Claim
    from taskq.flow.store import FlowStore


class _Wanted(NamedTuple):
    at: int
    claim: "Claim"
    raises: bool
    task: str


def stamp(
    item: Prepared,
    task: BaseTask[Any, Any] | None,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    idempotency_key: Any,
    shared: bool,
) -> Prepared:
    """Return a call with the keys of its limits in the header; as it is where there are none.

    Args:
        item: The prepared call.
        task: Its task; None for one that is not known here, whose keys a worker computes.
        args: Positional arguments.
        kwargs: Keyword arguments.
        idempotency_key: The call's own, or None.
        shared: Whether there is a results store.

    Raises:
        KeyExpressionFailed: If a key cannot be made from the arguments.
        ConfigError: If the idempotency key is not usable, or there is no store to share limits in.
    """
    keys: dict[str, str] = {}
    flow = None if task is None else task.spec.flow
    if not shared and (flow is not None or idempotency_key is not None):
        raise ConfigError(
            f"{item.outgoing.message.task}: limits, unique and idempotency_key live in the results "
            "store, and results are off; set `results=` or TASKQ_RESULTS"
        )
    if flow is not None and task is not None:
        wanted = flow.keys()
        if wanted:
            from taskq.flow.keys import compute_keys

            keys = compute_keys(wanted, args, kwargs, task.call_signature)
        if flow.unique in ("s", "d", "w"):
            keys[CLAIMED] = ""
        elif flow.unique == "b":
            keys[SENT_AT] = str(time.time_ns() // 1000)
    if idempotency_key is not None:
        keys["i"] = _own_key(idempotency_key)
    if not keys:
        return item
    outgoing = item.outgoing
    message = outgoing.message
    headers = {**message.headers, KEYS: keys}
    return replace(item, outgoing=replace(outgoing, message=message._replace(headers=headers)))


def _own_key(value: Any) -> str:
    if not isinstance(value, str | int) or isinstance(value, bool) or value == "":
        raise ConfigError(f"idempotency_key is {value!r:.60}; use a text or a whole number")
    from taskq.flow.keys import canonical

    return canonical(value)


class Claims:
    """Claims the unique keys of calls before they are sent."""

    def __init__(self, find: Callable[[str], BaseTask[Any, Any] | None]) -> None:
        """Claim nothing yet.

        Args:
            find: Gives a task by name, None for one that is not known here.
        """
        self._find = find

    def take(
        self, prepared: Sequence[Prepared], store: "Callable[[], FlowStore]"
    ) -> tuple[list[Prepared], dict[int, str]]:
        """Claim the keys of unique calls.

        Args:
            prepared: Calls in order.
            store: Opens the store, when there is something to claim.

        Returns:
            The calls that are to be sent, and for the others, by index, the id of the task that is
            there already.

        Raises:
            AlreadyQueued: If a task is there already whose declaration asks for this; what the
                other calls claimed is undone.
            ResultsUnavailable: If the store cannot be reached.
        """
        wanted = [want for at, item in enumerate(prepared) if (want := self._wanted(at, item))]
        if not wanted:
            return list(prepared), {}
        claims = [want.claim for want in wanted]
        holders = store().claim(claims)
        lost = {
            want.at: holder
            for want, holder in zip(wanted, holders, strict=True)
            if holder != want.claim.task_id
        }
        for want in wanted:
            if want.at in lost and (want.raises or len(prepared[want.at].ids) > 1):
                won = [other.claim for other in wanted if other.at not in lost]
                if won:
                    store().unclaim(won)
                raise AlreadyQueued(want.task, lost[want.at])
        return [item for at, item in enumerate(prepared) if at not in lost], lost

    def watch(
        self, publishing: Publishing, prepared: Sequence[Prepared], store: "Callable[[], FlowStore]"
    ) -> Publishing:
        """Return a send that undoes the claims of what is not confirmed.

        A message that did arrive claims its key again when a worker gets it.
        """
        claims = {
            at: want.claim for at, item in enumerate(prepared) if (want := self._wanted(at, item))
        }
        return _Watched(publishing, claims, store) if claims else publishing

    def _wanted(self, at: int, item: Prepared) -> _Wanted | None:
        message = item.outgoing.message
        keys = message.headers.get(KEYS)
        if keys is None or CLAIMED not in keys:
            return None
        task = self._find(message.task)
        if task is None or task.spec.flow is None:
            return None
        from taskq.flow.declared import Claim
        from taskq.flow.keys import cell_name

        flow = task.spec.flow
        cell = cell_name("u", message.task, keys["u"])
        span_us = flow.unique_us
        if flow.unique != "w":
            span_us += round(item.delay_s * 1e6)
        claim = Claim(cell, message.id, span_us, flow.unique != "w")
        return _Wanted(at, claim, flow.on_duplicate == "raise", message.task)


class _Watched:
    """A send under way whose messages hold claims."""

    def __init__(
        self, publishing: Publishing, claims: "dict[int, Claim]", store: "Callable[[], FlowStore]"
    ) -> None:
        self._publishing = publishing
        self._claims = claims
        self._store = store

    def wait(self) -> list[PublishError | None]:
        """Wait for the confirms; see `Publishing`."""
        errors = self._publishing.wait()
        self._undo(errors)
        return errors

    async def wait_async(self) -> list[PublishError | None]:
        """Wait without blocking the loop; see `Publishing`."""
        errors = await self._publishing.wait_async()
        if any(errors):
            import asyncio

            await asyncio.to_thread(self._undo, errors)
        return errors

    def _undo(self, errors: Sequence[PublishError | None]) -> None:
        lost = [self._claims[at] for at, error in enumerate(errors) if error and at in self._claims]
        if not lost:
            return
        # The sender learns that its message was not confirmed; a claim that stays ends by itself.
        with contextlib.suppress(ResultsUnavailable):
            self._store().unclaim(lost)
