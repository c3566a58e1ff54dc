"""The examples of patterns with Kafka are run as their reader runs them, on a real Kafka."""

from pathlib import Path

import pytest
from example_runs import ROOT, check_pattern
from kafka_server import GivenKafka, KafkaServer

pytest.importorskip("confluent_kafka")

PATTERNS = ROOT / "examples" / "patterns"
EXAMPLES = sorted([path.stem for path in PATTERNS.glob("kafka_*.py")] + ["hybrid_bus"])


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_pattern_with_kafka_does_what_it_says(
    name: str, shared_kafka: KafkaServer | GivenKafka, tmp_path: Path
) -> None:
    """Each checks its own results and ends with 1 when one is off."""
    check_pattern(name, {"KAFKA_BOOTSTRAP": shared_kafka.bootstrap}, tmp_path)
