"""Answers to remote calls: messages that follow a run like any other, to whoever waits."""

from taskq.brokers.base import Outgoing
from taskq.errors import RemoteError
from taskq.message import Message
from taskq.messaging import pack_answer
from taskq.outcome import error_to_wire
from taskq.topics import REPLY, RPC


def answer(
    message: Message, state: str, value: bytes | None = None, error: RemoteError | None = None
) -> list[Outgoing]:
    """Return the answer to a message, or nothing when nobody waits for one.

    Args:
        message: The request.
        state: How its task ended.
        value: The encoded result of a success.
        error: The exception of a failure.
    """
    if not message.reply_to or RPC not in message.headers:
        return []
    body = pack_answer(state, value, None if error is None else error_to_wire(error))
    reply = Message(REPLY, message.id, body)
    return [Outgoing("", reply, topic=message.reply_to)]
