"""When deliveries are judged: in large batches under load, at once where executors would wait."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from taskq.brokers.base import Delivery
from taskq.envelope import Envelope
from taskq.message import Message
from taskq.worker.endings import Ending
from taskq.worker.held import Held
from taskq.worker.intake import Intake, Judged


class Store:
    """As much of a results store as is asked here."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def fetch_news(self, ids: Sequence[str], after: int) -> tuple[list[bytes | None], list[Any]]:
        self.asked.append(len(ids))
        return [None] * len(ids), []


class Judge:
    """As much of an admission as is asked here."""

    def __init__(self) -> None:
        self.rules: Any = type("Rules", (), {"last": 0, "learn": staticmethod(lambda news: None)})

    def judge(self, held: Held, data: bytes | None) -> Ending | None:
        return None


def deliveries(count: int) -> list[Held]:
    return [
        Held(tag, Delivery(tag, "q", Message("t", str(tag), b"")), Envelope(), None)
        for tag in range(count)
    ]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


def test_while_executors_have_enough_to_do_the_batch_grows() -> None:
    async def main() -> None:
        store: Any = Store()
        judge: Any = Judge()
        judged: list[Held] = []

        def take(batch: Judged) -> None:
            judged.extend(held for held, _ in batch)

        intake = Intake(asyncio.get_running_loop(), store, judge, take, lambda error: None)
        hungry = False
        intake.hungry = lambda: hungry
        for held in deliveries(30):
            intake.add([held])
        assert store.asked == []

        hungry = True
        intake.go_on()
        await until(lambda: len(judged) == 30)

        assert store.asked == [30]
        intake.close()

    asyncio.run(main())


def test_what_waits_is_judged_at_once_when_the_hub_says_so() -> None:
    """It may be more urgent than all that is ready; the hub asks for it at each tick."""

    async def main() -> None:
        store: Any = Store()
        judge: Any = Judge()
        judged: list[Judged] = []
        intake = Intake(asyncio.get_running_loop(), store, judge, judged.append, lambda error: None)
        intake.hungry = lambda: False
        intake.add(deliveries(1))

        intake.go_on(at_once=True)
        await until(lambda: len(judged) == 1)
        intake.close()

    asyncio.run(main())
