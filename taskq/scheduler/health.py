"""`--health-port` of a scheduler: /livez, /readyz and /metrics, on a thread of their own.

Liveness says that the loop turns; readiness that it would send, or stand by to, now.
"""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from taskq import clock
from taskq.errors import ConfigError
from taskq.scheduler.scheduler import Scheduler

_SILENT_S: Final = 60.0
_TIMEOUT_S: Final = 5.0


def metrics(scheduler: Scheduler) -> str:
    """Return counters in Prometheus' text format (version 0.0.4)."""
    lines = ["# TYPE taskq_scheduler_ticks_total counter"]
    lines += [
        f'taskq_scheduler_ticks_total{{kind="{kind}"}} {count}'
        for kind, count in sorted(scheduler.counts.items())
    ]
    lines += [
        "# TYPE taskq_scheduler_leader gauge",
        f"taskq_scheduler_leader {int(scheduler.leading)}",
        "# TYPE taskq_scheduler_schedules gauge",
        f"taskq_scheduler_schedules {scheduler.size}",
        "# TYPE taskq_schedule_lag_seconds gauge",
        f"taskq_schedule_lag_seconds {scheduler.lag_s():.3f}",
    ]
    return "\n".join(lines) + "\n"


def respond(scheduler: Scheduler, path: str) -> tuple[int, str]:
    """Return (HTTP status, body) for a path."""
    if path == "/livez":
        silent_s = clock.monotonic_s() - scheduler.beat_at_s
        return (200, "ok\n") if silent_s < _SILENT_S else (503, f"no turn for {silent_s:.0f} s\n")
    if path == "/readyz":
        return (503, f"{scheduler.trouble}\n") if scheduler.trouble else (200, "ok\n")
    if path == "/metrics":
        return 200, metrics(scheduler)
    return 404, "try /livez, /readyz or /metrics\n"


def serve(scheduler: Scheduler, port: int) -> ThreadingHTTPServer:
    """Listen on all interfaces at a port; `shutdown` the server at the end.

    Raises:
        ConfigError: If the port is taken.
    """

    class Handler(BaseHTTPRequestHandler):
        """Answers one request."""

        timeout = _TIMEOUT_S

        def do_GET(self) -> None:
            """Answer."""
            status, body = respond(scheduler, self.path.partition("?")[0])
            data = body.encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            """Stay silent: probes come every few seconds."""

    try:
        server = ThreadingHTTPServer(("", port), Handler)
    except OSError as error:
        raise ConfigError(f"health port {port}: {error}") from error
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="taskq-health", daemon=True).start()
    return server
