"""Brokers by URL; a driver is imported when its URL is opened."""

import importlib
import re
from collections.abc import Sequence
from typing import Final

from taskq.brokers.base import Broker, BrokerOptions
from taskq.brokers.shapes import QueueShape
from taskq.config import Settings, nearest
from taskq.errors import ConfigError

_DRIVERS: Final = {
    "amqp": ("taskq.brokers.rabbitmq", "RabbitBroker"),
    "amqps": ("taskq.brokers.rabbitmq", "RabbitBroker"),
    "sqlite": ("taskq.brokers.sqlite", "SqliteBroker"),
    "memory": ("taskq.brokers.memory", "MemoryBroker"),
}
_PREFIX: Final = re.compile(r"[A-Za-z0-9_.:-]{1,50}")
_PACKAGES: Final = {"pika": "pika>=1.3,<1.5", "msgpack": "msgpack>=1.1"}


def broker_options(
    name: str, settings: Settings, queues: Sequence[QueueShape] = ()
) -> BrokerOptions:
    """Return what a broker needs to know of an app.

    Args:
        name: The app's.
        settings: The app's.
        queues: Those that it declares.
    """
    return BrokerOptions(
        prefix=settings.prefix,
        declare=settings.declare,
        queue_type=settings.queue_type,
        publish_timeout_s=settings.publish_timeout_s,
        dead_ttl_s=settings.dead_ttl_s,
        lease_s=settings.lease_s,
        name=name,
        durable_events=settings.events == "durable",
        queues=tuple(queues),
        priority_aging=settings.priority_aging,
    )


def open_broker(url: str, options: BrokerOptions) -> Broker:
    """Return the broker of a URL; it connects on first use.

    Args:
        url: Such as `amqp://guest:guest@localhost:5672//`, `sqlite:///taskq.db` or `memory://`.
        options: What the broker needs to know of the app's settings.

    Raises:
        ConfigError: For an unknown scheme, a URL that cannot be read, a missing driver, or a prefix
            that cannot begin a queue's name.
    """
    scheme, colon, _ = url.partition("://")
    driver = _DRIVERS.get(scheme.lower())
    if driver is None or not colon:
        # The URL itself is not shown: what does not parse may still hold a password.
        shown = f"scheme {scheme!r}" if colon else "no scheme"
        raise ConfigError(
            f"the broker URL has {shown}; use one of {', '.join(f'{s}://' for s in _DRIVERS)}"
            + (nearest(scheme.lower(), _DRIVERS) if colon else "")
        )
    if options.prefix and not _PREFIX.fullmatch(options.prefix):
        raise ConfigError(
            f"prefix {options.prefix!r} is not usable; "
            "use up to 50 letters, digits or any of _ . : -"
        )
    module, name = driver
    try:
        make = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _PACKAGES:
            raise
        raise ConfigError(
            f"broker URLs {scheme}:// need {package}: pip install '{_PACKAGES[package]}'"
        ) from error
    broker: Broker = make(url, options)
    return broker
