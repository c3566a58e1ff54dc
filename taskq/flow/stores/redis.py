"""Flow control in Redis: one script for each batch, by Redis' own clock."""

from collections.abc import Sequence
from typing import Any, Final

import msgpack

from taskq.flow.asks import Ask, Release, Verdict
from taskq.flow.declared import Claim
from taskq.flow.store import Admitted, FlowStore
from taskq.flow.stores import redis_returns, redis_script
from taskq.results.redis import RedisResults

_CHUNK: Final = 500


class RedisFlow(FlowStore):
    """See `FlowStore`. Cells are keys `<prefix>:flow:<cell>`, in msgpack."""

    def __init__(self, results: RedisResults, now_us: int = 0) -> None:
        """Use the connections of a results store.

        Args:
            results: The store.
            now_us: Moment that replaces the server's clock, for tests; 0 for none.
        """
        self._results = results
        self._prefix = f"{results.prefix}:flow:"
        self.fixed_us = now_us

    def admit(
        self, ids: Sequence[str], asks: Sequence[tuple[int, Ask]], after: int = 0
    ) -> Admitted:
        """Fetch and decide; see `FlowStore`."""
        parts = []
        for start in range(0, len(ids), _CHUNK):
            keys = self._results.result_keys(ids[start : start + _CHUNK])
            items = [
                (at - start + 1, ask.to_list()) for at, ask in asks if start <= at < start + _CHUNK
            ]
            parts.append((keys, self._arguments(items)))
        replies, news = self._results.run_with_news(redis_script.ADMIT, parts, after)
        answer = Admitted([], [], [], news)
        for records, verdicts, done in replies:
            answer.records.extend(records)
            answer.verdicts.extend(_verdict(item) for item in msgpack.unpackb(verdicts, raw=False))
            answer.done.extend(done)
        return answer

    def release(self, batch: Sequence[Release]) -> list[str]:
        """Take back; see `FlowStore`."""
        answers = self._return("release", 0, [given.to_list() for given in batch])
        return [answer.decode() for answer in answers]

    def renew(self, batch: Sequence[Release], lease_us: int) -> None:
        """Keep; see `FlowStore`."""
        self._return("renew", lease_us, [given.to_list() for given in batch])

    def claim(self, batch: Sequence[Claim]) -> list[str]:
        """Claim; see `FlowStore`."""
        return [answer.decode() for answer in self._return("claim", 0, [tuple(c) for c in batch])]

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
        found = {}
        for key, data in zip(keys, self._results.read(keys), strict=True):
            if data is not None:
                found[key[len(self._prefix) :]] = msgpack.unpackb(data, strict_map_key=False)
        return found

    def now_us(self) -> int:
        """Return Redis' clock; see `FlowStore`."""
        if self.fixed_us:
            return self.fixed_us
        seconds, micros = self._results.server_time()
        return seconds * 1_000_000 + micros

    def _arguments(self, asked: Any) -> list[Any]:
        results = self._results.result_keys([""])[0]
        return [msgpack.packb(asked), self._prefix, results, self.fixed_us]

    def _return(self, what: str, lease_us: int, items: Sequence[Any]) -> list[bytes]:
        parts: list[tuple[list[str], list[Any]]] = [
            ([], self._arguments([what, lease_us, items[start : start + _CHUNK]]))
            for start in range(0, len(items), _CHUNK)
        ]
        replies = self._results.run_script(redis_returns.RETURNS, parts)
        return [answer for reply in replies for answer in reply]


def _verdict(item: list[Any]) -> Verdict:
    code, wait_us, waited, at_us, version, other, probe = item
    return Verdict(code, wait_us, waited, at_us, version, other, probe)
