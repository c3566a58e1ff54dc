"""Redis URLs: what taskq accepts, and the connection they stand for."""

import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

from redis.backoff import NoBackoff
from redis.connection import (
    BlockingConnectionPool,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.retry import Retry

from taskq.config import nearest
from taskq.errors import ConfigError

_EXAMPLE: Final = "write it as redis://user:password@host:6379/0"
_CERTIFICATE_CHECKS: Final = {
    "required": ssl.CERT_REQUIRED,
    "optional": ssl.CERT_OPTIONAL,
    "none": ssl.CERT_NONE,
}


@dataclass(frozen=True)
class RedisAddress:
    """A parsed URL.

    Attributes:
        masked: The URL with its password replaced by `***`.
        prefix: First part of every key.
        max_connections: Connections that commands may open, not counting the listener's.
        timeout_s: Longest wait for a connection or an answer, in seconds.
        kind: Connection class of redis-py.
        arguments: Its keyword arguments.
    """

    masked: str
    prefix: str = "taskq"
    max_connections: int = 8
    timeout_s: float = 5.0
    kind: Any = Connection
    arguments: dict[str, Any] = field(default_factory=dict, repr=False)

    def open_pool(self) -> BlockingConnectionPool:
        """Return a new pool; it connects on first use."""
        pool_type: Any = BlockingConnectionPool
        pool: BlockingConnectionPool = pool_type(
            max_connections=self.max_connections,
            timeout=self.timeout_s,
            connection_class=self.kind,
            **self.arguments,
        )
        return pool

    def open_connection(self) -> Any:
        """Return a connection of its own; it connects on first use."""
        return self.kind(**self.arguments)


def parse_url(url: str, timeout_s: float) -> RedisAddress:
    """Read a `redis://`, `rediss://` (TLS) or `unix://` URL.

    Options: `prefix`, `db`, `timeout` (seconds), `max_connections`, and for TLS `ssl_cert_reqs`
    (`required`, `optional`, `none`), `ssl_ca_certs`, `ssl_certfile`, `ssl_keyfile`,
    `ssl_check_hostname` (`yes`, `no`).

    Args:
        url: The URL; user and password may be percent-encoded.
        timeout_s: Default of the option `timeout`.

    Raises:
        ConfigError: If it is not one, or has an unknown option.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"the results URL is malformed ({error}): {_EXAMPLE}") from None
    masked = _mask(parts)
    kinds: dict[str, Any] = {
        "redis": Connection,
        "rediss": SSLConnection,
        "unix": UnixDomainSocketConnection,
    }
    if parts.scheme not in kinds:
        raise ConfigError(f"{masked} has the scheme {parts.scheme!r}: {_EXAMPLE}")
    options = _read_options(parts, masked)
    arguments = {name: options.pop(name) for name in list(options) if name.startswith("ssl_")}
    if parts.scheme != "rediss" and arguments:
        raise ConfigError(f"{masked}: {', '.join(arguments)} need TLS, that is rediss://")
    arguments |= _place(parts, port, masked)
    arguments["db"] = options.pop("db", arguments.get("db", 0))
    wait_s = options.pop("timeout", timeout_s)
    # RESP2 on every redis-py and server; each try is ours, so that errors come within timeout_s.
    arguments |= {
        "username": unquote(parts.username) if parts.username else None,
        "password": unquote(parts.password) if parts.password else None,
        "protocol": 2,
        "retry": Retry(NoBackoff(), 0),
        "socket_timeout": wait_s,
    }
    if parts.scheme != "unix":
        arguments |= {"socket_connect_timeout": wait_s, "socket_keepalive": True}
    return RedisAddress(
        masked, timeout_s=wait_s, kind=kinds[parts.scheme], arguments=arguments, **options
    )


def _mask(parts: SplitResult) -> str:
    credentials, at, place = parts.netloc.rpartition("@")
    user, colon, _ = credentials.partition(":")
    secret = ":***" if colon else ""
    return parts._replace(netloc=f"{user}{secret}{at}{place}").geturl()


def _place(parts: SplitResult, port: int | None, masked: str) -> dict[str, Any]:
    if parts.scheme == "unix":
        if not parts.path or parts.path == "/" or parts.hostname:
            raise ConfigError(f"{masked} names no socket: write it as unix:///run/redis.sock?db=0")
        return {"path": unquote(parts.path)}
    place: dict[str, Any] = {"host": unquote(parts.hostname or "localhost"), "port": port or 6379}
    if database := parts.path.strip("/"):
        place["db"] = _database(unquote(database), masked)
    return place


def _database(text: str, masked: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise ConfigError(f"{masked}: the database is {text!r}; use a number from 0")
    return int(text)


def _prefix(text: str, masked: str) -> str:
    prefix = text.rstrip(":")
    if not prefix or quote(prefix, safe=":/{}") != prefix:
        raise ConfigError(f"{masked}: prefix is {text!r}; use letters, digits and ._-:/{{}}")
    return prefix


def _seconds(text: str, masked: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.0 < seconds <= 3600.0:
        raise ConfigError(f"{masked}: timeout is {text!r}; use seconds, above 0 and at most 3600")
    return seconds


def _count(text: str, masked: str) -> int:
    if not (text.isascii() and text.isdecimal()) or not 1 <= int(text) <= 10_000:
        raise ConfigError(f"{masked}: max_connections is {text!r}; use a number from 1 to 10000")
    return int(text)


def _check(text: str, masked: str) -> ssl.VerifyMode:
    if text not in _CERTIFICATE_CHECKS:
        names = ", ".join(_CERTIFICATE_CHECKS)
        raise ConfigError(f"{masked}: ssl_cert_reqs is {text!r}; use one of {names}")
    return _CERTIFICATE_CHECKS[text]


def _yes_or_no(text: str, masked: str) -> bool:
    if text not in ("yes", "no", "true", "false", "1", "0"):
        raise ConfigError(f"{masked}: ssl_check_hostname is {text!r}; use yes or no")
    return text in ("yes", "true", "1")


def _as_is(text: str, masked: str) -> str:
    return text


_OPTIONS: Final[dict[str, Callable[[str, str], Any]]] = {
    "prefix": _prefix,
    "db": _database,
    "timeout": _seconds,
    "max_connections": _count,
    "ssl_cert_reqs": _check,
    "ssl_check_hostname": _yes_or_no,
    "ssl_ca_certs": _as_is,
    "ssl_certfile": _as_is,
    "ssl_keyfile": _as_is,
}


def _read_options(parts: SplitResult, masked: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name, text in parse_qsl(parts.query, keep_blank_values=True):
        if name not in _OPTIONS:
            known = ", ".join(_OPTIONS)
            raise ConfigError(
                f"{masked}: unknown option {name!r}{nearest(name, _OPTIONS)}; known: {known}"
            )
        options[name] = _OPTIONS[name](text, masked)
    return options
