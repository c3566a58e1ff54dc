"""Where Kafka is, and a topic of one's own: shared by the examples with Kafka.

KAFKA_BOOTSTRAP names the servers; localhost:9092 otherwise.
"""

import os
import uuid
from typing import Any

from taskq.events.kafka.topics import make_topics

PROPERTIES: dict[str, Any] = {
    "bootstrap.servers": os.environ.get("KAFKA_BOOTSTRAP", "localhost:9092")
}


def new_topic(name: str, partitions: int = 3) -> str:
    """Make a topic that nobody else uses, and its dead-letter topic; return its name."""
    topic = f"{name}-{uuid.uuid4().hex[:8]}"
    make_topics(PROPERTIES, {topic: partitions, f"{topic}.dead": 1}, 1)
    return topic
