"""A circuit breaker around a consumer: while the service is away, partitions are paused.

KAFKA_BOOTSTRAP=localhost:9092 python examples/patterns/kafka_circuit_breaker.py
"""

from _kafka import PROPERTIES, new_topic

from taskq import CircuitBreaker
from taskq.events.kafka import Producer, Record, RecordConsumer


def main() -> None:
    topic = new_topic("orders")
    with Producer(PROPERTIES) as producer:
        for number in range(20):
            producer.send(topic, b"order", key=str(number))
    calls = 0
    states: list[str] = []

    def handler(record: Record) -> None:
        nonlocal calls
        calls += 1
        if calls <= 4:
            raise ConnectionError("the payment service is away")

    breaker = CircuitBreaker(failures=3, window_s=60, reset_s=1, on=ConnectionError)
    consumer = RecordConsumer(PROPERTIES, topic, [topic], circuit_breaker=breaker)

    def until() -> bool:
        if states[-1:] != [consumer.circuit]:
            states.append(consumer.circuit)
        return consumer.handled >= 20

    consumer.run(handler, until=until)
    consumer.close()
    print(" -> ".join(states), f"after {calls} calls for 20 orders")
    assert states[:2] == ["closed", "open"]
    assert states[-1] == "closed"
    # Three failures opened it, one probe failed; nothing else was tried meanwhile.
    assert calls == 24


if __name__ == "__main__":
    main()
