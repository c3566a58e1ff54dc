"""Kafka: the bridge that carries lifecycle events there, and what produces and consumes events.

Needs confluent-kafka: `pip install 'taskq-mq[kafka]'`. Workers never talk to Kafka.
"""

from taskq.events.kafka.client import KafkaError, load_client
from taskq.events.kafka.consumer import EventConsumer
from taskq.events.kafka.member import RecordConsumer
from taskq.events.kafka.producer import NotWritten, Producer
from taskq.events.kafka.record import Record, current_record
from taskq.events.kafka.replaying import replay
from taskq.events.kafka.retries import RetryTopics

__all__ = [
    "EventConsumer",
    "KafkaError",
    "NotWritten",
    "Producer",
    "Record",
    "RecordConsumer",
    "RetryTopics",
    "current_record",
    "load_client",
    "replay",
]
