"""A private RabbitMQ 4, run by chroot out of the directory that `scripts/rabbitmq4` makes."""

import os
import shutil
import uuid
from pathlib import Path

import pika
from pika.exceptions import AMQPError
from servers import RabbitServer, ServerMissing

RABBITMQ4_CURE = "sh scripts/rabbitmq4, as root"
_PROBE_TIMEOUT_S = 20.0


def rabbitmq4_directory() -> Path:
    """Return where `scripts/rabbitmq4` puts it; it may not be there."""
    return Path(os.environ.get("TASKQ_RABBITMQ4", "/var/cache/taskq-tests/rabbitmq4"))


class RabbitServer4(RabbitServer):
    """One node of RabbitMQ 4; see `RabbitServer`.

    Its data lies inside the directory of the chroot, and `directory` only points there, so that
    nothing need be mounted.
    """

    needs = f"needs RabbitMQ 4: {RABBITMQ4_CURE}"

    def __init__(self, directory: Path) -> None:
        self.root = rabbitmq4_directory()
        if os.geteuid() or not (self.root / "made-by-taskq").exists():
            raise ServerMissing(self.needs)
        super().__init__(directory)

    def _find_programs(self) -> Path:
        (found,) = self.root.glob("usr/lib/rabbitmq/lib/rabbitmq_server-4.*/sbin")
        return found

    def _make_base(self) -> Path:
        pointer = self.directory / "outside"
        if not pointer.exists():
            pointer.write_text(str(self.root / "srv" / uuid.uuid4().hex[:8]))
        base = Path(pointer.read_text())
        base.mkdir(exist_ok=True, parents=True)
        return base

    def _inside(self, path: Path) -> str:
        return f"/{path.relative_to(self.root)}"

    def _argv(self, program: str) -> list[str]:
        return ["chroot", str(self.root), program]

    def start(self) -> None:
        """Boot the node; see `RabbitServer`.

        A 4.0 that was killed sometimes comes back refusing every message to quorum queues; one
        more restart mends it, and that is RabbitMQ's matter, not what is tested here.
        """
        super().start()
        if self._takes_messages():
            return
        super().stop()
        super().start()
        if not self._takes_messages():
            raise RuntimeError(f"RabbitMQ 4 refuses messages after two starts:\n{self.output()}")

    def _takes_messages(self) -> bool:
        url = self.add_vhost()
        parameters = pika.URLParameters(url)
        parameters.blocked_connection_timeout = _PROBE_TIMEOUT_S
        try:
            connection = pika.BlockingConnection(parameters)
            try:
                channel = connection.channel()
                channel.queue_declare("probe", durable=True, arguments={"x-queue-type": "quorum"})
                channel.confirm_delivery()
                channel.basic_publish("", "probe", b"x", mandatory=True)
            finally:
                connection.close()
        except AMQPError:
            return False
        finally:
            self.drop_vhost(url)
        return True

    def destroy(self) -> None:
        """End node and epmd at once and remove all data."""
        base = self._base
        super().destroy()
        shutil.rmtree(base, ignore_errors=True)
