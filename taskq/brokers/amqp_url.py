"""URLs of RabbitMQ to what a connection needs."""

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, cast
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

import pika

from taskq.config import nearest
from taskq.errors import ConfigError

_NUMBERS: Final = {
    "heartbeat": (15.0, 0.0, 3600.0),
    "socket_timeout": (5.0, 0.1, 600.0),
    "stack_timeout": (10.0, 0.1, 600.0),
    "blocked_connection_timeout": (300.0, 1.0, 86400.0),
}
"""Numeric option to (default, least, greatest), in seconds."""
_FILES: Final = ("cafile", "certfile", "keyfile")
_LAYOUTS: Final = ("taskq", "celery")
_OPTIONS: Final = (*_NUMBERS, *_FILES, "layout")

# A dead peer is noticed when sent data stays unacknowledged, long before the heartbeat fails.
_TCP_OPTIONS: Final = {"TCP_USER_TIMEOUT": 20_000, "TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One broker of a failover list.

    Attributes:
        masked: The URL without its password.
        address: `host:port`, for messages.
        layout: `celery` declares work queues the way Celery does.
        parameters: pika's parameters; shared, pika copies them.
    """

    masked: str
    address: str
    layout: Literal["taskq", "celery"]
    parameters: Any


def parse_urls(text: str, name: str) -> list[Endpoint]:
    """Read a failover list of URLs, separated by `;` or `,`.

    Args:
        text: Such as `amqp://user:secret@host:5672/vhost?heartbeat=15`. Both `amqp://host` and
            `amqp://host//` mean the vhost `/`.
        name: Shown to the broker as the connection's name.

    Raises:
        ConfigError: Naming the part that cannot be read; a password is never shown.
    """
    # A comma may stand in a password; one that separates is followed by a scheme.
    parts = [part.strip() for part in re.split(r";|,(?=\s*amqps?://)", text) if part.strip()]
    if not parts:
        raise ConfigError("the broker URL is empty")
    return [_parse(part, name) for part in parts]


def _parse(text: str, name: str) -> Endpoint:
    if "#" in text:
        raise ConfigError("the broker URL contains '#'; write %23 for it in a password")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        # What is taken for a port may be half a password with a slash in it: it is not shown.
        raise ConfigError(
            "the broker URL cannot be read: its port is not a number from 0 to 65535, or a bracket "
            "is not closed; in a password write %2F for '/' and %40 for '@'"
        ) from None
    scheme = parts.scheme.lower()
    if scheme not in ("amqp", "amqps"):
        raise ConfigError(f"the broker URL has scheme {parts.scheme!r}; use amqp:// or amqps://")
    host = parts.hostname or "localhost"
    port = port or (5671 if scheme == "amqps" else 5672)
    options = _options(parts.query)
    user = unquote(parts.username) if parts.username else "guest"
    password = unquote(parts.password) if parts.password is not None else "guest"
    parameters = pika.ConnectionParameters(
        host=host,
        port=port,
        virtual_host=_vhost(parts.path),
        credentials=pika.PlainCredentials(user, password, erase_on_connect=False),
        heartbeat=int(options["heartbeat"]),
        connection_attempts=1,
        socket_timeout=options["socket_timeout"],
        stack_timeout=options["stack_timeout"],
        blocked_connection_timeout=options["blocked_connection_timeout"],
        ssl_options=_tls(options, host) if scheme == "amqps" else None,
        client_properties={"connection_name": name, "product": "taskq"},
        tcp_options=dict(_TCP_OPTIONS),
    )
    layout = cast(Literal["taskq", "celery"], options["layout"])
    return Endpoint(_masked(text), f"{host}:{port}", layout, parameters)


def _vhost(path: str) -> str:
    # `amqp://host//` is how Celery's users write the vhost "/"; pika reads an empty name there.
    return unquote(path[1:]) or "/"


def _masked(text: str) -> str:
    parts = urlsplit(text)
    if parts.password is None:
        return text
    login, _, where = parts.netloc.rpartition("@")
    user = login.partition(":")[0]
    netloc = f"{user}:***@{where}"
    return urlunsplit((parts.scheme, netloc, parts.path, parts.query, parts.fragment))


def _options(query: str) -> dict[str, Any]:
    options: dict[str, Any] = {name: default for name, (default, _, _) in _NUMBERS.items()}
    options["layout"] = "taskq"
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in _OPTIONS:
            raise ConfigError(f"unknown option {name!r} in the broker URL{nearest(name, _OPTIONS)}")
        options[name] = _number(name, value) if name in _NUMBERS else value
    if options["layout"] not in _LAYOUTS:
        raise ConfigError(
            f"layout is {options['layout']!r} in the broker URL; use one of {', '.join(_LAYOUTS)}"
        )
    return options


def _number(name: str, text: str) -> float:
    _, least, greatest = _NUMBERS[name]
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not least <= value <= greatest:
        raise ConfigError(
            f"{name} is {text!r} in the broker URL; use seconds from {least:g} to {greatest:g}"
        )
    return value


def _tls(options: Mapping[str, Any], host: str) -> Any:
    try:
        context = ssl.create_default_context(cafile=options.get("cafile"))
        if options.get("certfile"):
            context.load_cert_chain(options["certfile"], options.get("keyfile"))
    except OSError as error:
        raise ConfigError(f"cafile, certfile or keyfile of the broker URL: {error}") from error
    return pika.SSLOptions(context, host)
