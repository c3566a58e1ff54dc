"""Sending many calls: in parts, with pipelined confirms."""

from collections.abc import Callable, Iterator, Sequence

from taskq.brokers.base import Publishing
from taskq.calls import Prepared
from taskq.errors import PublishError

PART = 1000
"""Messages sent under one timeout, and in one transaction of the embedded broker."""

Begin = Callable[[Sequence[Prepared]], Publishing]


def parts(prepared: Sequence[Prepared]) -> Iterator[Sequence[Prepared]]:
    """Yield calls in parts of at most `PART`."""
    for start in range(0, len(prepared), PART):
        yield prepared[start : start + PART]


def send_parts(prepared: Sequence[Prepared], begin: Begin) -> list[PublishError | None]:
    """Send in parts, one part ahead, so that each part has the whole timeout to itself.

    Args:
        prepared: What to send.
        begin: Hands a part to the broker.

    Returns:
        One entry for each call, in order: None when it was confirmed.
    """
    errors: list[PublishError | None] = []
    ahead: Publishing | None = None
    for part in parts(prepared):
        under_way = begin(part)
        if ahead is not None:
            errors += ahead.wait()
        ahead = under_way
    if ahead is not None:
        errors += ahead.wait()
    return errors


def raise_first(errors: Sequence[PublishError | None]) -> None:
    """Raise the first failure, if any; `failed_ids` of it names all of them.

    Raises:
        PublishError: If at least one entry is not None.
    """
    failed = [error for error in errors if error is not None]
    if failed:
        first = failed[0]
        if len(errors) > 1:
            first.add_note(f"{len(failed)} of {len(errors)} messages were not confirmed")
        first.failed_ids = [error.task_id for error in failed]
        raise first


class Batch:
    """Sends of one `with app.batch()` block: collected, pipelined, confirmed at its end.

    Attributes:
        owner: The app whose sends it collects.
    """

    def __init__(self, owner: object, begin: Begin) -> None:
        self.owner = owner
        self._begin = begin
        self._waiting: list[Prepared] = []
        self._under_way: list[Publishing] = []

    def add(self, prepared: list[Prepared]) -> None:
        """Collect calls; full parts leave at once."""
        self._waiting += prepared
        if len(self._waiting) >= PART:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            ready, self._waiting = self._waiting, []
            self._under_way += [self._begin(part) for part in parts(ready)]

    def finish(self) -> None:
        """Send the rest and wait for every confirm.

        Raises:
            PublishError: If at least one was not confirmed.
        """
        self._flush()
        raise_first([error for publishing in self._under_way for error in publishing.wait()])
