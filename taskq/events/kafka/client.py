"""Settings of Kafka clients: from the environment and options, secrets masked in every message."""

import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from taskq.errors import BrokerError, ConfigError

VARIABLES: Final = "TASKQ_KAFKA_"
_SECRET: Final = ("password", "secret", "token", "pem", "jaas")


class KafkaError(BrokerError):
    """Kafka failed in a way that a new start may cure; commands exit with 75."""


def load_client() -> Any:
    """Return the module `confluent_kafka`.

    Raises:
        ConfigError: If it is not installed.
    """
    try:
        import confluent_kafka
    except ImportError as error:
        raise ConfigError("Kafka needs confluent-kafka: pip install 'taskq-mq[kafka]'") from error
    return confluent_kafka


def read_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the properties that `TASKQ_KAFKA_*` variables give.

    `TASKQ_KAFKA_SASL_PASSWORD` is `sasl.password`; with `_FILE` behind it, the value is in a file.

    Raises:
        ConfigError: If such a file cannot be read.
    """
    found: dict[str, str] = {}
    for variable, value in environ.items():
        if not variable.startswith(VARIABLES):
            continue
        name = variable.removeprefix(VARIABLES)
        if name.endswith("_FILE"):
            name = name.removesuffix("_FILE")
            try:
                value = Path(value).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(
                    f"{variable} names a file that cannot be read: {error}"
                ) from error
        found[name.lower().replace("_", ".")] = value
    return found


def parse_properties(words: Iterable[str]) -> dict[str, str]:
    """Return properties given as `name=value`.

    Raises:
        ConfigError: For a word without `=`.
    """
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name.strip():
            # Not repeated: it may be a password without its name.
            raise ConfigError("a Kafka property is written as name=value, such as linger.ms=5")
        found[name.strip()] = value
    return found


def masked(text: object, properties: Mapping[str, Any]) -> str:
    """Return a text without the values of secret properties."""
    shown = str(text)
    for name, value in properties.items():
        if value and any(word in name for word in _SECRET):
            shown = shown.replace(str(value), "***")
    return shown


def make(kind: str, properties: Mapping[str, Any]) -> Any:
    """Return a `Producer`, `Consumer` or `AdminClient`.

    Args:
        kind: Which.
        properties: Of librdkafka.

    Raises:
        ConfigError: If the client is not installed, or refuses a property.
    """
    module: Any = load_client()
    if kind == "AdminClient":
        from confluent_kafka import admin

        module = admin
    if not properties.get("bootstrap.servers"):
        raise ConfigError(
            "where is Kafka? name its servers: --bootstrap host:9092, "
            "or TASKQ_KAFKA_BOOTSTRAP_SERVERS"
        )
    given = {"client.id": f"taskq@{socket.gethostname()}", "log_level": 2, **properties}
    try:
        return getattr(module, kind)(given)
    except (module_error(), ValueError, TypeError) as error:
        raise ConfigError(f"Kafka's client refuses: {masked(error, properties)}") from None


def module_error() -> type[Exception]:
    """Return the client's own exception."""
    error: type[Exception] = load_client().KafkaException
    return error
