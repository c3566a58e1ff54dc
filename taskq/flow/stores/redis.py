"""Flow control in Redis: one script for each batch, by Redis' own clock."""

from collections.abc import Sequence
from typing import Any, Final

import msgpack

from taskq.flow.asks import START, Ask, Holder, Release, Verdict
from taskq.flow.declared import Claim
from taskq.flow.store import Admitted, FlowStore, with_holders
from taskq.flow.stores import redis_returns, redis_script
from taskq.results.redis import RedisResults

_CHUNK: Final = 500


class RedisFlow(FlowStore):
    """See `FlowStore`.

    Cells are keys `<prefix>:flow:<cell>`, in msgpack; the slots of a cell are at
    `<prefix>:slots:<cell>` and `<prefix>:leases:<cell>`.
    """

    def __init__(self, results: RedisResults, now_us: int = 0) -> None:
        """Use the connections of a results store.

        Args:
            results: The store.
            now_us: Moment that replaces the server's clock, for tests; 0 for none.
        """
        self._results = results
        self._prefix = f"{results.prefix}:"
        self.fixed_us = now_us

    def admit(
        self, ids: Sequence[str], asks: Sequence[tuple[int, Ask]], after: int = 0
    ) -> Admitted:
        """Fetch and decide; see `FlowStore`."""
        parts = []
        for start in range(0, len(ids), _CHUNK):
            keys = self._results.result_keys(ids[start : start + _CHUNK])
            chunk = asks if len(ids) <= _CHUNK else _within(asks, start)
            parts.append((keys, self._arguments(_questions(chunk, start))))
        replies, news = self._results.run_with_news(redis_script.ADMIT, parts, after)
        answer = Admitted([], [], {}, news)
        for records, verdicts, done in replies:
            for number, record in zip(done[::2], done[1::2], strict=True):
                answer.done[len(answer.verdicts) + number - 1] = record
            answer.records.extend(records)
            found = msgpack.unpackb(verdicts, raw=False)
            answer.verdicts.extend([START if item == 0 else Verdict(*item) for item in found])
        return answer

    def release(self, batch: Sequence[Release]) -> list[str]:
        """Take back; see `FlowStore`."""
        changes = [""] * len(batch)
        # The script unpacks what `Release` is, in its order.
        for start, answers in self._return("release", 0, batch):
            for number, change in zip(answers[::2], answers[1::2], strict=True):
                changes[start + number - 1] = change.decode()
        return changes

    def renew(self, batch: Sequence[Release], lease_us: int) -> None:
        """Keep; see `FlowStore`."""
        self._return("renew", lease_us, batch)

    def claim(self, batch: Sequence[Claim]) -> list[str]:
        """Claim; see `FlowStore`."""
        parts = self._return("claim", 0, batch)
        return [answer.decode() for _start, answers in parts for answer in answers]

    def unclaim(self, batch: Sequence[Claim]) -> None:
        """Undo claims; see `FlowStore`."""
        self._return("unclaim", 0, [(claim.cell, claim.task_id) for claim in batch])

    def change(self, name: str, value: Any, forget: Sequence[str] = ()) -> None:
        """Set a limit and forget cells; see `FlowStore`."""
        arguments = self._arguments([name, False if value is None else value, list(forget)])
        self._results.run_script(redis_returns.SET, [([], arguments)])

    def cells(self) -> dict[str, list[Any]]:
        """Return all cells; see `FlowStore`."""
        keys = self._results.scan("flow:*")
        found: dict[str, list[Any]] = {}
        start = len(self._prefix) + len("flow:")
        for key, data in zip(keys, self._results.read(keys), strict=True):
            if data is not None:
                found[key[start:]] = msgpack.unpackb(data, strict_map_key=False)
        return with_holders(found, self._slots(), self.now_us())

    def now_us(self) -> int:
        """Return Redis' clock; see `FlowStore`."""
        if self.fixed_us:
            return self.fixed_us
        seconds, micros = self._results.server_time()
        return seconds * 1_000_000 + micros

    def _slots(self) -> dict[str, dict[str, Holder]]:
        """Return who holds the slots of each cell; for looking."""
        start = len(self._prefix) + len("slots:")
        cells = [key[start:] for key in self._results.scan("slots:*")]
        found: dict[str, dict[str, Holder]] = {}
        if not cells:
            return found
        (reply,) = self._results.run_script(redis_returns.HOLDERS, [([], self._arguments(cells))])
        for cell, slots in zip(cells, reply, strict=True):
            ids, texts, ends = slots
            found[cell] = {}
            for task_id, text, end in zip(ids, texts, ends, strict=True):
                since, _, nonce = (text or b"0 ").decode().partition(" ")
                found[cell][task_id.decode()] = Holder(int(float(end)), nonce, int(since))
        return found

    def _arguments(self, asked: Any) -> list[Any]:
        results = self._results.result_keys([""])[0]
        return [msgpack.packb(asked), self._prefix, results, self.fixed_us]

    def _return(
        self, what: str, lease_us: int, items: Sequence[Any]
    ) -> list[tuple[int, list[Any]]]:
        """Return the answers of each part, with the index that it begins at."""
        starts = range(0, len(items), _CHUNK)
        parts: list[tuple[list[str], list[Any]]] = [
            ([], self._arguments([what, lease_us, items[start : start + _CHUNK]]))
            for start in starts
        ]
        replies = self._results.run_script(redis_returns.RETURNS, parts)
        return list(zip(starts, replies, strict=True))


def _within(asks: Sequence[tuple[int, Ask]], start: int) -> list[tuple[int, Ask]]:
    return [(at, ask) for at, ask in asks if start <= at < start + _CHUNK]


def _questions(asks: Sequence[tuple[int, Ask]], start: int) -> tuple[list[Any], list[Any]]:
    """Return what the asks of a batch have in common, each once, and the rest of each ask."""
    commons: list[Any] = []
    items = []
    last = None
    for at, ask in asks:
        task, task_id, attempt, again, nonce, lease, waited, at_us, version = ask[:9]
        common = (task, lease, *ask[11:])
        if common != last:
            last = common
            commons.append(common)
        items.append(
            (
                at - start + 1,
                len(commons),
                task_id,
                attempt,
                again,
                nonce,
                waited,
                at_us,
                version,
                ask.unique,
                ask.idempotency,
            )
        )
    return commons, items
