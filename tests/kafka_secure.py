"""A Kafka that lets nobody in without a name: SASL over TLS, and rights by access control lists."""

import subprocess
from pathlib import Path
from typing import Any

import processes
from kafka_server import KafkaServer

_SECURE = """\
listeners=PLAINTEXT://127.0.0.1:{port},SECURE://127.0.0.1:{secure},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port},SECURE://127.0.0.1:{secure}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SECURE:SASL_SSL,CONTROLLER:PLAINTEXT
listener.name.secure.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,OAUTHBEARER
listener.name.secure.plain.sasl.jaas.config=\
org.apache.kafka.common.security.plain.PlainLoginModule required \
user_carrier="{secret}" user_guest="{secret}";
listener.name.secure.scram-sha-256.sasl.jaas.config=\
org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.secure.oauthbearer.sasl.jaas.config=\
org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required \
unsecuredLoginStringClaim_sub="broker";
listener.name.secure.ssl.keystore.type=PEM
listener.name.secure.ssl.keystore.location={keystore}
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
auto.create.topics.enable=false
transaction.state.log.replication.factor=3
transaction.state.log.min.isr=3
"""


class SecureKafka(KafkaServer):
    """One node with a second listener for users: `carrier` (PLAIN, SCRAM, bearer) and `guest`.

    Whoever comes by the first listener may do all. Transactions would need three nodes.

    Attributes:
        secret: The password of all users.
        certificate: The certificate that it shows; its own authority.
    """

    secret = "open-sesame-4711"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._secure = processes.free_port()
        self.certificate = directory / "cert.pem"
        keystore, key = directory / "keystore.pem", directory / "key.pem"
        subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
        new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        files = ["-keyout", str(key), "-out", str(self.certificate)]
        argv = ["openssl", "req", "-x509", "-days", "2", *new_key, *files, *subject]
        subprocess.run(argv, check=True, capture_output=True)
        keystore.write_text(key.read_text() + self.certificate.read_text())
        self.more_settings = _SECURE.format(
            port=self.port,
            secure=self._secure,
            controller=self._controller,
            keystore=keystore,
            secret=self.secret,
        )
        scram = f"SCRAM-SHA-256=[name=carrier,password={self.secret}]"
        self.format_words = ["--add-scram", scram]

    def properties(self, mechanism: str, user: str = "carrier", **more: Any) -> dict[str, Any]:
        """Return a client's properties for the second listener."""
        found: dict[str, Any] = {
            "bootstrap.servers": f"127.0.0.1:{self._secure}",
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": mechanism,
            "ssl.ca.location": str(self.certificate),
        }
        if mechanism == "OAUTHBEARER":
            found["enable.sasl.oauthbearer.unsecure.jwt"] = "true"
            found["sasl.oauthbearer.config"] = f"principal={user}"
        else:
            found["sasl.username"], found["sasl.password"] = user, self.secret
        return {**found, **more}

    def allow(self, user: str, *operations: str) -> None:
        """Let a user do something with all topics and groups whose names begin with `ok-`."""
        from confluent_kafka import admin

        names: Any = vars(admin)
        client = admin.AdminClient({"bootstrap.servers": self.bootstrap})
        rules = [
            names["AclBinding"](
                names["ResourceType"][kind],
                "ok-",
                names["ResourcePatternType"].PREFIXED,
                f"User:{user}",
                "*",
                names["AclOperation"][operation],
                names["AclPermissionType"].ALLOW,
            )
            for kind in ("TOPIC", "GROUP", "TRANSACTIONAL_ID")
            for operation in operations
            if kind == "TOPIC" or operation != "CREATE"
        ]
        for future in client.create_acls(rules).values():
            future.result(60)
