"""`taskq bridge kafka`: lifecycle events to Kafka."""

import os
from typing import Any, Literal

import click

from taskq.cli.framework import Group, app_place, import_app, log_level, several
from taskq.errors import ConfigError
from taskq.events.kafka.topics import Topics

kafka_options = several(
    click.option("--bootstrap", metavar="HOST:PORT", help="Kafka's servers, separated by commas."),
    click.option(
        "-X", "words", multiple=True, metavar="NAME=VALUE", help="Any property of librdkafka."
    ),
)
process_options = several(
    click.option(
        "--health-port",
        type=click.IntRange(0, 65535),
        default=0,
        help="Port of /livez, /readyz and /metrics.",
    ),
    click.option("--log-format", type=click.Choice(["text", "json"]), default="text"),
)


@click.group(cls=Group, examples="taskq bridge kafka -A shop:app --bootstrap localhost:9092")
def bridge() -> None:
    """Carry events and messages to Kafka, and records of Kafka to tasks."""


@bridge.command(
    examples="""
    taskq bridge kafka -A shop:app --bootstrap localhost:9092 --create-topics
    TASKQ_KAFKA_SASL_PASSWORD_FILE=/run/secrets/kafka taskq bridge kafka -A shop:app \\
        --bootstrap kafka:9093 -X security.protocol=SASL_SSL -X sasl.mechanism=SCRAM-SHA-512 \\
        -X sasl.username=taskq
    """
)
@kafka_options
@click.option("--task-topic", default=Topics().tasks, show_default=True, metavar="NAME")
@click.option("--worker-topic", default=Topics().workers, show_default=True, metavar="NAME")
@click.option("--message-topic", default=Topics().messages, show_default=True, metavar="NAME")
@click.option(
    "--key",
    type=click.Choice(["task", "root"]),
    default="task",
    help="What keeps its order: each task (default), or whole workflows.",
)
@click.option("--create-topics", is_flag=True, help="Make topics that do not exist.")
@click.option("--partitions", type=click.IntRange(1), default=12, show_default=True)
@click.option(
    "--replication", type=int, default=-1, help="Copies of a partition; the broker's default."
)
@process_options
def kafka(
    bootstrap: str | None,
    words: tuple[str, ...],
    task_topic: str,
    worker_topic: str,
    message_topic: str,
    key: Literal["task", "root"],
    log_format: str,
    **options: Any,
) -> int:
    """Carry events from the broker to Kafka until a signal.

    One bridge carries, others stand by. An event is let go of after Kafka has it; exit code 75 says
    that the producer cannot go on and a new start will. TASKQ_KAFKA_<PROPERTY> gives properties of
    the client, such as TASKQ_KAFKA_SASL_PASSWORD or, from a file, TASKQ_KAFKA_SASL_PASSWORD_FILE.
    """
    from taskq.app import TaskQ
    from taskq.events.kafka.service import BridgeSettings, Service
    from taskq.worker.logs import set_up

    set_up(log_level() or "info", log_format)
    properties = _properties(bootstrap, words)
    topics = Topics(task_topic, worker_topic, key, message_topic)
    settings = BridgeSettings(properties, topics, **options)
    place = app_place()
    with import_app(place) if place else TaskQ("taskq") as app:
        return Service(app.broker, settings).run()


@bridge.command(
    "from-kafka",
    examples="""
    taskq bridge from-kafka -A shop:app --bootstrap localhost:9092
    taskq bridge from-kafka -A shop:app --group billing --health-port 8080
    """,
)
@kafka_options
@click.option(
    "--group", "groups", multiple=True, metavar="NAME", help="Only this group; all by default."
)
@process_options
def from_kafka(
    bootstrap: str | None,
    words: tuple[str, ...],
    groups: tuple[str, ...],
    health_port: int,
    log_format: str,
) -> int:
    """Turn records of Kafka into tasks: the functions declared with @app.on_kafka.

    Run as many as you like: they share the partitions. An offset is committed after the broker
    confirmed the task. What cannot be read goes to <topic>.dead. Exit code 75 says that a new
    start will go on, 78 that a topic or a right is missing. TASKQ_KAFKA_<PROPERTY> gives
    properties of the client.
    """
    from taskq.intake import IntakeService
    from taskq.worker.logs import set_up

    set_up(log_level() or "info", log_format)
    properties = _properties(bootstrap, words)
    place = app_place()
    if not place:
        raise ConfigError("which app? use -A module:name, or set TASKQ_APP")
    with import_app(place) as app:
        return IntakeService(app, properties, groups, health_port).run()


def _properties(bootstrap: str | None, words: tuple[str, ...]) -> dict[str, Any]:
    from taskq.events.kafka.client import parse_properties, read_environment

    properties: dict[str, Any] = {**read_environment(os.environ), **parse_properties(words)}
    if bootstrap:
        properties["bootstrap.servers"] = bootstrap
    return properties
