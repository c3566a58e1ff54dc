"""Dead letters as JSON lines, exact to the byte, to be kept, sent elsewhere, or changed by hand."""

import base64
import binascii
import json
from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgpack

from taskq.brokers.base import DEAD_QUEUE, Delivery
from taskq.dead.letter import DeadLetter, read_letter
from taskq.errors import ConfigError, DecodeError, EncodeError
from taskq.message import MAX_BODY_BYTES, Message, check_header_values

FORMAT: Final = 1
_TEXTS: Final = ("task", "id", "content_type", "content_encoding", "correlation_id", "reply_to")
_MOST_LINE: Final = 2 * MAX_BODY_BYTES


def write_letter(letter: DeadLetter) -> str:
    """Return a letter as one line of JSON, without the line's end.

    Besides the fields of `DeadLetter.to_json` it holds `taskq_dead_letter` (the format's version)
    and `message`: all parts of the message, its body in base64.
    """
    message = letter.message
    parts: dict[str, Any] = {name: getattr(message, name) for name in _TEXTS}
    parts["priority"] = message.priority
    parts["body"] = base64.b64encode(message.body).decode()
    # Whatever a hostile message put there must come back the same, bytes and maps with foreign keys
    # included; only msgpack carries them all.
    parts["headers"] = base64.b64encode(msgpack.packb(dict(message.headers))).decode()
    return json.dumps({"taskq_dead_letter": FORMAT, **letter.to_json(), "message": parts})


def read_letters(lines: Iterable[str], name: str) -> list[DeadLetter]:
    """Read what `write_letter` wrote, all of it or nothing.

    Args:
        lines: The lines; empty ones are passed over.
        name: Where they come from, for the error.

    Raises:
        ConfigError: If a line is no letter; the message says which one, and why.
    """
    return list(_letters(lines, name))


def _letters(lines: Iterable[str], name: str) -> Iterator[DeadLetter]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield read_letter(Delivery(0, DEAD_QUEUE, _message(line)))
        except (ValueError, KeyError, TypeError, RecursionError, DecodeError, EncodeError) as error:
            what = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else error
            raise ConfigError(
                f"line {number} of {name} is no dead letter that taskq exported ({what}); "
                "nothing was imported"
            ) from error


def _message(line: str) -> Message:
    if len(line) > _MOST_LINE:
        raise ValueError("it is too long")
    data = json.loads(line)
    if not isinstance(data, dict) or data.get("taskq_dead_letter") != FORMAT:
        raise ValueError(f"it has no taskq_dead_letter: {FORMAT}")
    parts = data["message"]
    texts = {name: parts[name] for name in _TEXTS}
    if not all(isinstance(value, str) for value in texts.values()):
        raise ValueError("a part of its message is no text")
    priority = parts["priority"]
    if not isinstance(priority, int) or not 0 <= priority <= 9:
        raise ValueError("its priority is not 0 to 9")
    try:
        headers = msgpack.unpackb(_bytes(parts["headers"]), strict_map_key=False)
    except (ValueError, msgpack.UnpackException) as error:
        raise ValueError(f"its headers are not msgpack ({error})") from error
    if not isinstance(headers, dict):
        raise ValueError("its headers are no map")
    check_header_values(headers)
    return Message(body=_bytes(parts["body"]), headers=headers, priority=priority, **texts)


def _bytes(text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"a part of its message is not base64 ({error})") from error
