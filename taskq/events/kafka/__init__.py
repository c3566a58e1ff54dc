"""Kafka: the bridge that carries lifecycle events there, and what consumes them.

Needs confluent-kafka: `pip install 'taskq-mq[kafka]'`. Workers never talk to Kafka.
"""

from taskq.events.kafka.client import load_client

__all__ = ["load_client"]
