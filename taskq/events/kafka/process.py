"""What the bridge's processes share: signals, and a port that says how they are."""

import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import FrameType
from typing import Any, Final

from taskq.errors import ConfigError

EX_OK, EX_TEMPFAIL = 0, 75
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_HTTP_S: Final = 5.0


@contextlib.contextmanager
def stopped_by_signals(stop: Callable[[], None], log: logging.Logger) -> Iterator[None]:
    """Call `stop` when TERM or INT comes; only the main thread can be told.

    Args:
        stop: Called in the handler.
        log: Says which signal came.
    """

    def on_signal(number: int, _: FrameType | None) -> None:
        log.info("signal %s", signal.Signals(number).name)
        stop()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, on_signal) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def health_port(
    port: int, readiness: Callable[[], str], metrics: Callable[[], str]
) -> Iterator[None]:
    """Serve /livez, /readyz and /metrics.

    Args:
        port: Where; 0 for nowhere.
        readiness: Returns why it is not ready, or an empty text.
        metrics: Returns counters as text.

    Raises:
        ConfigError: If the port is taken.
    """
    if not port:
        yield
        return
    try:
        server = ThreadingHTTPServer(("", port), _handler(readiness, metrics))
    except OSError as error:
        raise ConfigError(f"health port {port}: {error}") from error
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="taskq-health", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


def metrics_text(prefix: str, values: Mapping[str, int]) -> str:
    """Return values in Prometheus' text format.

    Args:
        prefix: Put before each name.
        values: By name; those that end in `_total` are counters, the others gauges.
    """
    lines = []
    for name, value in values.items():
        kind = "counter" if name.endswith("_total") else "gauge"
        lines += [f"# TYPE {prefix}_{name} {kind}", f"{prefix}_{name} {value}"]
    return "\n".join(lines) + "\n"


def _handler(
    readiness: Callable[[], str], metrics: Callable[[], str]
) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = _HTTP_S

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            status, body = 200, "ok\n"
            if path == "/readyz" and (why := readiness()):
                status, body = 503, f"{why}\n"
            elif path == "/metrics":
                body = metrics()
            elif path not in ("/livez", "/readyz"):
                status, body = 404, "try /livez, /readyz or /metrics\n"
            data = body.encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            """Probes are not worth a line each."""

    return Handler
