"""Kafka transaction: both entries of a booking, or none.

KAFKA_BOOTSTRAP=localhost:9092 python examples/patterns/kafka_transaction.py
"""

from _kafka import PROPERTIES, new_topic

from taskq.events.kafka import Producer, Record, RecordConsumer


def book(producer: Producer, topic: str, giver: str, taker: str, amount: int) -> None:
    with producer.transaction():
        producer.send(topic, str(-amount).encode(), key=giver)
        if amount > 100:
            raise ValueError("too much")
        producer.send(topic, str(amount).encode(), key=taker)


def main() -> None:
    topic = new_topic("entries")
    # The same name after a restart aborts what the last life left open.
    with Producer(PROPERTIES, transactional_id=f"{topic}-1") as producer:
        book(producer, topic, "ann", "bob", 5)
        try:
            book(producer, topic, "ann", "bob", 500)
        except ValueError as error:
            print("not booked:", error)
        book(producer, topic, "bob", "cy", 2)

    balances: dict[str, int] = {}

    def handler(record: Record) -> None:
        balances[record.key] = balances.get(record.key, 0) + int(record.value)

    # Consumers of taskq read committed records only.
    consumer = RecordConsumer(PROPERTIES, topic, [topic])
    consumer.run(handler, until=lambda: consumer.handled >= 4)
    consumer.close()
    print(balances)
    assert balances == {"ann": -5, "bob": 3, "cy": 2}


if __name__ == "__main__":
    main()
