"""A connection that is cut while it is opened: no refusal, and the next try is taken."""

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pytest
from broker_helpers import ready, send
from embedded_helpers import outgoing

from taskq.brokers import open_broker
from taskq.brokers.base import BrokerOptions
from taskq.errors import BrokerUnavailable, ConfigError

START_OK = struct.pack(">HH", 10, 11)
"""The login; what follows is the broker's answer to it."""
OPEN = struct.pack(">HH", 10, 40)
"""The choice of the vhost."""
RESET = struct.pack("ii", 1, 0)


class Cutter:
    """Stands before RabbitMQ and ends connections at one step of their handshake.

    Attributes:
        cuts: How many were ended.
        left: How many more are to be.
    """

    def __init__(self, port: int, step: bytes, how: str, left: int) -> None:
        self.cuts = 0
        self.left = left
        self._port = port
        self._step = step
        self._how = how
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """End it and what goes through it."""
        for one in (self._listener, *self._open):
            # Wakes up the thread that waits in it.
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._port))
            self._open += (client, server)
            for ends in ((client, server), (server, client)):
                threading.Thread(target=self._pass, args=(*ends, client), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                # Type and channel and size of the frame come first.
                if source is client and self.left and self._step in data:
                    self.left -= 1
                    self.cuts += 1
                    if self._how == "RST":
                        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                    break
                target.sendall(data)
        for one in (source, target):
            with contextlib.suppress(OSError):
                if one is not client or self._how != "RST":
                    one.shutdown(socket.SHUT_RDWR)
            one.close()


NewCutter = Callable[[int], tuple[Cutter, str]]


@pytest.fixture(params=[START_OK, OPEN], ids=["login", "vhost"])
def step(request: pytest.FixtureRequest) -> bytes:
    found: bytes = request.param
    return found


@pytest.fixture(params=["RST", "end"])
def new_cutter(
    request: pytest.FixtureRequest, rabbitmq_url: str, step: bytes
) -> Iterator[NewCutter]:
    """Makes a cutter of so many connections; with the URL through it."""
    made: list[Cutter] = []

    def make(left: int) -> tuple[Cutter, str]:
        port = urlsplit(rabbitmq_url).port or 0
        cutter = Cutter(port, step, request.param, left)
        made.append(cutter)
        return cutter, rabbitmq_url.replace(f":{port}/", f":{cutter.port}/")

    yield make
    for cutter in made:
        cutter.close()


def test_a_handshake_that_is_cut_is_no_refusal(new_cutter: NewCutter) -> None:
    """A refusal would end a worker for good, with the exit code of a wrong configuration."""
    cutter, url = new_cutter(1_000_000)
    broker = open_broker(url, BrokerOptions())

    with pytest.raises(BrokerUnavailable) as caught:
        broker.depths(["q"])

    assert cutter.cuts
    assert not isinstance(caught.value, ConfigError)
    assert "cannot connect" in str(caught.value)
    broker.close()


def test_a_send_is_tried_again_after_it(new_cutter: NewCutter) -> None:
    """The first connection is cut, the next one is not, and the caller notices nothing."""
    cutter, url = new_cutter(1)
    broker = open_broker(url, BrokerOptions())

    send(broker, outgoing("q"), timeout_s=60)

    assert cutter.cuts == 1
    assert ready(broker) == 1
    broker.close()
