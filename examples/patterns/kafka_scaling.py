"""Scaling a group: three consumers share twelve partitions; one joins late, one leaves.

KAFKA_BOOTSTRAP=localhost:9092 python examples/patterns/kafka_scaling.py
"""

import threading
from collections import defaultdict
from collections.abc import Callable

from _kafka import PROPERTIES, new_topic

from taskq.events.kafka import Producer, Record, RecordConsumer


class Member:
    """A consumer on a thread; it notes which partitions it served."""

    def __init__(self, topic: str, seen: "dict[str, set[int]]") -> None:
        self.served: set[int] = set()
        self._seen = seen
        self._consumer = RecordConsumer(PROPERTIES, topic, [topic])
        self._thread = threading.Thread(target=self._consumer.run, args=(self._handle,))
        self._thread.start()

    def _handle(self, record: Record) -> None:
        self.served.add(record.partition)
        self._seen[record.key].add(int(record.value))

    def leave(self) -> None:
        """End in order: the partitions go to the others at once."""
        self._consumer.stop()
        self._thread.join()
        self._consumer.close()


def send_until(topic: str, producer: Producer, done: Callable[[], bool], first: int) -> int:
    """Send a record of each partition, again and again, until it is done."""
    pause = threading.Event()
    number = first
    while not done() and number < first + 3000:
        for _ in range(12):
            producer.send(topic, str(number).encode(), key=f"k{number % 12}")
            number += 1
        producer.flush()
        pause.wait(0.05)
    assert done(), "the partitions were not shared"
    return number


def main() -> None:
    topic = new_topic("orders", 12)
    seen: dict[str, set[int]] = defaultdict(set)
    members = [Member(topic, seen), Member(topic, seen)]

    def spread(key: str, count: int) -> int:
        return int(key[1:]) % count

    with Producer(PROPERTIES, partitioner=spread) as producer:
        count = send_until(topic, producer, lambda: all(len(m.served) >= 6 for m in members), 0)
        members.append(Member(topic, seen))
        count = send_until(topic, producer, lambda: len(members[2].served) >= 4, count)
        print("three members:", [sorted(member.served) for member in members])
        members.pop(0).leave()
        for member in members:
            member.served.clear()
        count = send_until(topic, producer, lambda: all(len(m.served) >= 6 for m in members), count)
        print("two members:", [sorted(member.served) for member in members])
    wait = threading.Event()
    while sum(map(len, seen.values())) < count:
        wait.wait(0.05)
    for member in members:
        member.leave()
    print(f"{count} records, none lost")


if __name__ == "__main__":
    main()
