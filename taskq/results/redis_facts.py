"""What `taskq doctor` asks of a Redis server."""

from dataclasses import dataclass
from typing import Any

import redis

from taskq import clock
from taskq.errors import ResultsUnavailable
from taskq.results.redis_url import parse_url


@dataclass(frozen=True, slots=True)
class RedisFacts:
    """What a server says of itself.

    Attributes:
        version: Such as `7.0.15`.
        policy: `maxmemory-policy`, such as `noeviction`.
        max_bytes: `maxmemory`; 0 for no limit.
        skew_s: How far its clock is ahead of this one, in seconds.
    """

    version: str
    policy: str
    max_bytes: int
    skew_s: float


def read_facts(url: str, timeout_s: float) -> RedisFacts:
    """Ask a server for its memory policy and its time.

    Args:
        url: As of the setting `results`.
        timeout_s: Bound of each answer, in seconds.

    Raises:
        ResultsUnavailable: If it cannot be reached, or does not allow the question.
    """
    connection = parse_url(url, timeout_s).open_connection()
    try:
        connection.connect()
        info = {**_info(connection, "server"), **_info(connection, "memory")}
        before_ms = clock.now_ms()
        connection.send_command("TIME")
        seconds, micros = (int(part) for part in connection.read_response())
        middle_ms = (before_ms + clock.now_ms()) / 2
    except redis.RedisError as error:
        raise ResultsUnavailable(str(error)) from error
    finally:
        connection.disconnect()
    return RedisFacts(
        info.get("redis_version", ""),
        info.get("maxmemory_policy", ""),
        int(info.get("maxmemory", "0")),
        seconds + micros / 1e6 - middle_ms / 1000,
    )


def _info(connection: Any, section: str) -> dict[str, str]:
    connection.send_command("INFO", section)
    answer = connection.read_response()
    text = answer.decode(errors="replace") if isinstance(answer, bytes) else str(answer)
    lines = [line.partition(":") for line in text.splitlines() if ":" in line]
    return {name: value for name, _, value in lines}
