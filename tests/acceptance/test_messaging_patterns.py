"""The examples of messaging patterns are run as their reader runs them, on both kinds of broker."""

from pathlib import Path

import pytest
from example_runs import check_pattern

EXAMPLES = [
    "publish_subscribe",
    "topic_routing",
    "headers_routing",
    "request_reply",
    "event_sourcing",
]


@pytest.mark.parametrize("server", ["memory", "rabbitmq"])
@pytest.mark.parametrize("name", EXAMPLES)
def test_a_pattern_does_what_it_says(
    name: str, server: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Each checks its own results and ends with 1 when one is off."""
    servers = {}
    if server == "rabbitmq":
        servers["TASKQ_BROKER"] = request.getfixturevalue("rabbitmq_url")

    check_pattern(name, servers, tmp_path)
