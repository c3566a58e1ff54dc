"""A private Apache Kafka for tests: one node in KRaft mode, own port and data, 127.0.0.1 only.

`scripts/test` puts Kafka's jars into the virtual environment. Where they or Java are missing, tests
that need no real broker use the mock cluster that comes with confluent-kafka.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import processes
from servers import ServerMissing, _Server

KAFKA_CURE = "sh scripts/test fetches it where Java 17 and Maven are installed"
_BOOT_TIMEOUT_S = 120.0
_CLUSTER_ID = "dGFza3EtdGVzdHMtMDAwMQ"
# One thread for each kind of work, and a compiler that starts fast: this node serves one test.
_JAVA_OPTIONS = [
    "-Xmx320m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Xshare:auto",
    "-Djava.net.preferIPv4Stack=true",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
]
_SETTINGS = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
log.dirs={data}
num.partitions=4
num.network.threads=1
num.io.threads=2
offsets.topic.num.partitions=2
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=2
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
log.cleaner.enable=false
initial.broker.registration.timeout.ms=60000
"""


def jar_directory() -> Path | None:
    """Return where `scripts/test` put Kafka's jars, or None."""
    found = sorted(Path(sys.prefix).glob("kafka-*/kafka-server-[0-9]*.jar"))
    return found[-1].parent if found else None


def _java() -> str | None:
    program = shutil.which("java")
    if program is None:
        return None
    done = subprocess.run([program, "-version"], capture_output=True, text=True, check=False)
    number = re.search(r'version "(\d+)', done.stderr + done.stdout)
    return program if number and int(number[1]) >= 17 else None


class KafkaServer(_Server):
    """One Kafka node.

    Attributes:
        port: Where it listens, on 127.0.0.1; kept in the directory across restarts.
        more_settings: Lines behind the usual settings; later ones win.
        format_words: Further words for the tool that makes the data directory.
    """

    name = "kafka"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        jars, java = jar_directory(), _java()
        if jars is None or java is None:
            raise ServerMissing(f"needs Kafka: {KAFKA_CURE}")
        self._jars, self._java = jars, java
        ports = directory / "ports"
        if not ports.exists():
            ports.write_text(" ".join(str(processes.free_port()) for _ in range(2)))
        self.port, self._controller = map(int, ports.read_text().split())
        self.more_settings = ""
        self.format_words: list[str] = []

    @property
    def bootstrap(self) -> str:
        """What clients call `bootstrap.servers`."""
        return f"127.0.0.1:{self.port}"

    @property
    def version(self) -> str:
        """Such as `4.1.2`, read from the jars."""
        (jar,) = self._jars.glob("kafka-server-[0-9]*.jar")
        return jar.stem.rpartition("-")[2]

    def _argv(self, main: str, *words: str) -> list[str]:
        return [self._java, *_JAVA_OPTIONS, "-cp", f"{self._jars}/*", main, *words]

    def start(self) -> None:
        """Start; returns when it answers, after 3 to 6 s."""
        config = self.directory / "server.properties"
        data = self.directory / "data"
        settings = _SETTINGS.format(port=self.port, controller=self._controller, data=data)
        config.write_text(settings + self.more_settings)
        env = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
        if not (data / "meta.properties").exists():
            argv = self._argv("kafka.tools.StorageTool", "format", "-t", _CLUSTER_ID)
            argv += ["-c", str(config), *self.format_words]
            subprocess.run(argv, env=env, check=True, capture_output=True, timeout=120)
        processes.spawn(self._argv("kafka.Kafka", str(config)), env, self.directory, self.name)
        processes.wait_for(self._is_up, _BOOT_TIMEOUT_S, "the start of Kafka")

    def _is_up(self) -> bool:
        if self.pid is None:
            output = processes.tail(self.directory, self.name)
            raise RuntimeError(f"Kafka ended while starting:\n{output}")
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return bool(_brokers(self.bootstrap))


def _brokers(bootstrap: str) -> list[Any]:
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    client = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    try:
        return list(client.list_topics(timeout=5).brokers.values())
    except KafkaException:
        return []


class MockKafka:
    """librdkafka's mock cluster inside this process; ends with it.

    It has no administration, no time index and no transaction isolation.

    Attributes:
        bootstrap: What clients call `bootstrap.servers`.
    """

    version = "librdkafka mock"

    def __init__(self) -> None:
        from confluent_kafka import Producer

        self._client = Producer({"test.mock.num.brokers": 1, "log_level": 0})
        brokers = self._client.list_topics(timeout=10).brokers.values()
        self.bootstrap = ",".join(f"{broker.host}:{broker.port}" for broker in brokers)


class GivenKafka:
    """The cluster that KAFKA_BOOTSTRAP names; it is used, never stopped.

    Attributes:
        bootstrap: What clients call `bootstrap.servers`.
    """

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap
        self.version = f"at {bootstrap}"
