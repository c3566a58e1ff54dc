"""Cells of flow control in memory, and the rules on them at a given moment."""

from typing import Any

from taskq.flow import returns, rules
from taskq.flow.asks import Ask, Holder, Release, Verdict


class Memory:
    """Cells in a map; nothing is forgotten by itself."""

    def __init__(self) -> None:
        self.states: dict[str, list[Any]] = {}
        self.ended: set[str] = set()
        self.slots: dict[str, dict[str, Holder]] = {}
        self.now = 0

    def get(self, name: str) -> list[Any] | None:
        return self.states.get(name)

    def put(self, name: str, state: list[Any], ttl_us: int) -> None:
        assert ttl_us > 0
        self.states[name] = state

    def drop(self, name: str) -> None:
        self.states.pop(name, None)

    def finished(self, task_id: str) -> bool:
        return task_id in self.ended

    def _live(self, name: str) -> dict[str, Holder]:
        found = self.slots.get(name, {})
        return {own: holder for own, holder in found.items() if holder.until_us > self.now}

    def held(self, name: str) -> int:
        return len(self._live(name))

    def holder(self, name: str, task_id: str) -> Holder | None:
        return self._live(name).get(task_id)

    def first(self, name: str) -> Holder | None:
        live = self._live(name)
        return min(live.items(), key=lambda item: (item[1].until_us, item[0]))[1] if live else None

    def hold(self, name: str, task_id: str, holder: Holder) -> None:
        self.slots.setdefault(name, {})[task_id] = holder

    def unhold(self, name: str, task_id: str) -> None:
        self.slots[name].pop(task_id, None)


def judge(ask: Ask, cells: Memory, now: int) -> Verdict:
    cells.now = now
    return rules.judge(ask, cells, now)


def release(given: Release, cells: Memory, now: int) -> str:
    cells.now = now
    return returns.release(given, cells, now)
