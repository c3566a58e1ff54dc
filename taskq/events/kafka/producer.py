"""A producer for users' own events: idempotent, in order for each key, with transactions."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from taskq.errors import ConfigError, TaskqError
from taskq.events.kafka.bridge import PRODUCER
from taskq.events.kafka.client import KafkaError, load_client, make, masked
from taskq.events.kafka.topics import DEAD

FLUSH_S: Final = 30.0
_POLL_S: Final = 0.1
_PURGED: Final = ("_PURGE_QUEUE", "_PURGE_INFLIGHT")
Partitioner = Callable[[str, int], int]


class NotWritten(TaskqError):
    """Kafka did not take some records.

    Attributes:
        failed: (topic, key, what Kafka said) of each.
    """

    def __init__(self, failed: list[tuple[str, str, str]]) -> None:
        topic, key, why = failed[0]
        super().__init__(f"{len(failed)} records were not written; {topic} key {key!r}: {why}")
        self.failed = failed


class Producer:
    """Sends records; `flush` waits until Kafka has them.

    Keys lie where Java's clients put them. Use one from one thread.
    """

    def __init__(
        self,
        properties: Mapping[str, Any],
        *,
        transactional_id: str = "",
        partitioner: Partitioner | None = None,
        dead_letters: bool = False,
        timeout_s: float = FLUSH_S,
    ) -> None:
        """Connect.

        Args:
            properties: Of librdkafka; at least `bootstrap.servers`. They win over the bridge's,
                but records time out after five minutes here, in transactions after one.
            transactional_id: Name for `transaction`; the same after a restart, so that what its
                last life left open is aborted.
            partitioner: Returns the partition of (key, number of partitions).
            dead_letters: Whether a record that Kafka refuses goes to `<topic>.dead` with the
                error in its headers, instead of failing `flush`.
            timeout_s: How long Kafka may take for each step of a transaction, in seconds.

        Raises:
            ConfigError: If the client is not installed, or refuses a property.
            KafkaError: If Kafka does not answer, or gives no transactions, where they are wanted.
        """
        own = {**PRODUCER, "message.timeout.ms": 300_000, "linger.ms": 5, **properties}
        if transactional_id:
            # A record may not outlive its transaction, which Kafka ends after a minute.
            own.update({"transactional.id": transactional_id, "message.timeout.ms": 60_000})
        self._properties = own
        self._transactional = bool(transactional_id)
        self._partitioner = partitioner
        self._dead_letters = dead_letters
        self._timeout_s = timeout_s
        self._partitions: dict[str, int] = {}
        self._failed: list[tuple[str, str, str]] = []
        self._errors = (load_client().KafkaException, SystemError)
        self._client = make("Producer", own)
        if self._transactional:
            self._begin_life(transactional_id)

    def send(
        self, topic: str, value: bytes, *, key: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        """Hand over a record; it is not written before `flush` returns.

        Args:
            topic: Where.
            value: What.
            key: Records of one key keep their order.
            headers: Texts.

        Raises:
            KafkaError: If the producer cannot go on.
        """
        given = dict(headers or {})
        pairs = [(name, _encoded(text)) for name, text in given.items()]

        def report(error: Any, _: Any) -> None:
            # Purged with the transaction that was aborted: nobody waits for it.
            if error is not None and error.name() not in _PURGED:
                self._refused(topic, key, value, given, f"{error.name()}: {error.str()}")

        options: dict[str, Any] = {"headers": pairs, "on_delivery": report}
        if self._partitioner is not None:
            options["partition"] = self._partitioner(key, self._count(topic))
        while True:
            try:
                self._client.produce(topic, value, _encoded(key) or None, **options)
                self._client.poll(0)
                return
            except BufferError:
                self._client.poll(_POLL_S)
            except self._errors as error:
                if "MSG_SIZE_TOO_LARGE" not in str(error):
                    raise self._trouble(error) from None
                self._refused(topic, key, value, given, str(error))
                return

    def flush(self, timeout_s: float = FLUSH_S) -> None:
        """Wait until Kafka has everything that was sent.

        Args:
            timeout_s: How long, in seconds.

        Raises:
            NotWritten: If it refused some, and they have no dead-letter topic.
            KafkaError: If it does not answer in time, or the producer cannot go on.
        """
        try:
            left = self._client.flush(timeout_s)
        except self._errors as error:
            raise self._trouble(error) from None
        failed, self._failed = self._failed, []
        if failed:
            raise NotWritten(failed)
        if left:
            raise KafkaError(f"Kafka did not confirm {left} records within {timeout_s:g} s")

    @contextlib.contextmanager
    def transaction(self) -> Iterator["Producer"]:
        """Write what is sent in the block as a whole, or not at all.

        Readers with `isolation.level=read_committed` see it after the block. When the block
        raises, nothing of it is ever visible to them.

        Raises:
            ConfigError: If the producer has no `transactional_id`.
            KafkaError: If Kafka refuses or does not answer; the transaction was aborted.
        """
        if not self._transactional:
            raise ConfigError("transactions need a name: Producer(..., transactional_id='shop-1')")
        self._guarded(self._client.begin_transaction)
        try:
            yield self
            self.flush()
            self._guarded(lambda: self._client.commit_transaction(self._timeout_s))
        except BaseException:
            self._failed = []
            # A producer that was fenced cannot abort either; its successor has done it.
            with contextlib.suppress(*self._errors):
                self._client.abort_transaction(self._timeout_s)
            raise

    def commit_offsets(self, consumer: Any, offsets: Any) -> None:
        """Make the place of a consumer part of the transaction: read, compute, write, all or none.

        Args:
            consumer: A consumer of confluent-kafka.
            offsets: Its `TopicPartition`s, each with the offset of the next record.

        Raises:
            KafkaError: If Kafka refuses.
        """
        metadata = consumer.consumer_group_metadata()
        self._guarded(
            lambda: self._client.send_offsets_to_transaction(offsets, metadata, self._timeout_s)
        )

    def close(self) -> None:
        """Wait for what was sent; see `flush`."""
        self.flush()

    def __enter__(self) -> "Producer":
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        if kind is None:
            self.close()

    def _begin_life(self, name: str) -> None:
        try:
            self._client.init_transactions(self._timeout_s)
        except self._errors as error:
            raise KafkaError(
                f"Kafka gives no transactions to {name!r}: {masked(error, self._properties)}; it "
                "needs the brokers that transaction.state.log.replication.factor asks for, and "
                "this user the right to write under that name"
            ) from None

    def _count(self, topic: str) -> int:
        count = self._partitions.get(topic, 0)
        if not count:
            found = self._guarded(lambda: self._client.list_topics(topic, timeout=FLUSH_S))
            count = self._partitions[topic] = len(found.topics[topic].partitions) or 1
        return count

    def _refused(
        self, topic: str, key: str, value: bytes, headers: Mapping[str, str], why: str
    ) -> None:
        if not self._dead_letters or topic.endswith(DEAD):
            self._failed.append((topic, key, why))
            return
        story = {"taskq-error": why[:1000], "taskq-topic": topic, "taskq-bytes": str(len(value))}
        self.send(topic + DEAD, value[:5000], key=key, headers={**headers, **story})

    def _guarded(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except self._errors as error:
            raise self._trouble(error) from None

    def _trouble(self, error: Exception) -> KafkaError:
        return KafkaError(f"Kafka's producer: {masked(error, self._properties)}")


def _encoded(text: str) -> bytes:
    # What was no UTF-8 when it was read becomes what it was.
    return text.encode("utf-8", "surrogateescape")
