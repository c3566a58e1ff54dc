"""What becomes of the steps behind a task that was cancelled while it ran to its end."""

from taskq import clock, outcome
from taskq.body import decode_call
from taskq.canvas import step_ids
from taskq.errors import DecodeError
from taskq.results.base import Record, Write, encode_record
from taskq.worker.endings import Ending


def cancelled_behind(ending: Ending) -> list[Write]:
    """Return the CANCELLED records of what would have followed, so that nobody waits for it.

    Args:
        ending: How the task ended; its own record was refused, because CANCELLED stood there.
    """
    ids: list[str] = []
    for item in ending.follow:
        if item.dead:
            continue
        ids.append(item.message.id)
        try:
            ids += step_ids(decode_call(item.message).embed)
        except DecodeError:
            continue
    record = encode_record(Record(outcome.CANCELLED, at_ms=clock.now_ms()))
    ttl_s = ending.writes[0].ttl_s if ending.writes else 86400
    return [Write(task_id, record, ttl_s) for task_id in ids if task_id]
