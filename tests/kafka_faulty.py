"""librdkafka's mock cluster with errors on demand, by the functions that its client exports."""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

PRODUCE: Final = 0
"""Number of the request that writes records."""
OUT_OF_ORDER: Final = 45
"""Kafka's error for a sequence number that does not follow; the client cannot go on."""


class FaultyKafka:
    """A mock cluster of one broker in this process, until the process ends.

    Attributes:
        bootstrap: What clients call `bootstrap.servers`.
    """

    def __init__(self, topics: Sequence[str]) -> None:
        """Start.

        Args:
            topics: Made with one partition each.

        Raises:
            OSError: If the client's library does not export what is needed.
        """
        import confluent_kafka

        folder = Path(confluent_kafka.__file__).parents[1] / "confluent_kafka.libs"
        found = sorted(folder.glob("librdkafka-*.so*"))
        if not found:
            raise OSError("the client comes without its own librdkafka")
        self._library = ctypes.CDLL(str(found[0]))
        make = self._function("rd_kafka_new", ctypes.c_void_p)
        cluster = self._function("rd_kafka_mock_cluster_new", ctypes.c_void_p)
        text = ctypes.create_string_buffer(512)
        conf = self._function("rd_kafka_conf_new", ctypes.c_void_p)()
        self._client = ctypes.c_void_p(make(0, ctypes.c_void_p(conf), text, ctypes.c_size_t(512)))
        self._cluster = ctypes.c_void_p(cluster(self._client, 1))
        where = self._function("rd_kafka_mock_cluster_bootstraps", ctypes.c_char_p)
        self.bootstrap = where(self._cluster).decode()
        create = self._function("rd_kafka_mock_topic_create", ctypes.c_int)
        for topic in topics:
            assert create(self._cluster, topic.encode(), 1, 1) == 0

    def fail(self, request: int, *errors: int) -> None:
        """Answer the next requests of a kind with errors."""
        push = self._function("rd_kafka_mock_push_request_errors_array", None)
        array = (ctypes.c_int * len(errors))(*errors)
        push(self._cluster, ctypes.c_int16(request), ctypes.c_size_t(len(errors)), array)

    def _function(self, name: str, result: Any) -> Any:
        try:
            function = getattr(self._library, name)
        except AttributeError as error:
            raise OSError(f"librdkafka does not export {name}") from error
        function.restype = result
        return function
