"""Kafka: the bridge that carries lifecycle events there, and what produces and consumes events.

Needs confluent-kafka: `pip install 'taskq-mq[kafka]'`. Workers never talk to Kafka.
"""

from taskq.events.kafka.client import KafkaError, load_client
from taskq.events.kafka.consumer import EventConsumer, replay
from taskq.events.kafka.producer import NotWritten, Producer

__all__ = ["EventConsumer", "KafkaError", "NotWritten", "Producer", "load_client", "replay"]
