"""The examples of patterns on streams are run as their reader runs them, on a real Kafka."""

from pathlib import Path

import pytest
from example_runs import check_pattern
from kafka_server import GivenKafka, KafkaServer

pytest.importorskip("quixstreams")

TIMEOUT_S = 300
pytestmark = pytest.mark.timeout(320)


@pytest.mark.parametrize(
    "name", ["stream_pipeline", "stream_windows", "stream_join", "stream_scaling"]
)
def test_a_pattern_on_a_stream_does_what_it_says(
    name: str, shared_kafka: KafkaServer | GivenKafka, tmp_path: Path
) -> None:
    """Each compares its results with a batch over the same log and ends with 1 when one is off."""
    servers = {"TASKQ_KAFKA_BOOTSTRAP_SERVERS": shared_kafka.bootstrap}

    assert "Traceback" not in check_pattern(name, servers, tmp_path, TIMEOUT_S)
