"""The examples of patterns with Kafka are run as their reader runs them, on a real Kafka."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from kafka_server import GivenKafka, KafkaServer

pytest.importorskip("confluent_kafka")

ROOT = Path(__file__).parents[2]
PATTERNS = ROOT / "examples" / "patterns"
EXAMPLES = sorted([path.stem for path in PATTERNS.glob("kafka_*.py")] + ["hybrid_bus"])
TIMEOUT_S = 150


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_pattern_with_kafka_does_what_it_says(
    name: str, shared_kafka: KafkaServer | GivenKafka, tmp_path: Path
) -> None:
    """Each checks its own results and ends with 1 when one is off."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "KAFKA_BOOTSTRAP": shared_kafka.bootstrap}

    done = subprocess.run(
        [sys.executable, "-W", "error", str(PATTERNS / f"{name}.py")],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert not list(tmp_path.iterdir()), "the example left something behind"
