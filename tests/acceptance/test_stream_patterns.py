"""The examples of patterns on streams are run as their reader runs them, on a real Kafka."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from kafka_server import GivenKafka, KafkaServer

pytest.importorskip("quixstreams")

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 300
pytestmark = pytest.mark.timeout(320)


@pytest.mark.parametrize(
    "name", ["stream_pipeline", "stream_windows", "stream_join", "stream_scaling"]
)
def test_a_pattern_on_a_stream_does_what_it_says(
    name: str, shared_kafka: KafkaServer | GivenKafka, tmp_path: Path
) -> None:
    """Each compares its results with a batch over the same log and ends with 1 when one is off."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / "examples" / "patterns" / f"{name}.py")],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "TASKQ_KAFKA_BOOTSTRAP_SERVERS": shared_kafka.bootstrap,
        },
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir()), "the example left something behind"
