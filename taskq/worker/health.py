"""`--health-port`: /livez, /readyz and /metrics, served by the hub's own loop.

Liveness says that the loop turns; readiness that the worker would run a task now, and if not, why.
"""

import asyncio
import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from taskq.worker.hub import Hub

_TIMEOUT_S = 5.0


def readiness(hub: "Hub") -> str:
    """Return why the worker would not run a task now; empty when it would."""
    if hub.quiet:
        return "stopping"
    if not hub.connected:
        return f"broker: {hub.trouble}"
    if hub.watchdog.trouble:
        return f"watchdog: {hub.watchdog.trouble}"
    if hub.settler.trouble:
        return hub.settler.trouble
    if not hub.pool.ready():
        return "no executor is ready"
    return ""


def metrics(hub: "Hub") -> str:
    """Return counters in Prometheus' text format (version 0.0.4)."""
    lines = ["# TYPE taskq_worker_tasks_total counter"]
    lines += [
        f'taskq_worker_tasks_total{{state="{code.lower()}"}} {count}'
        for code, count in sorted(hub.stats.endings.items())
    ]
    lines += [
        "# TYPE taskq_worker_received_total counter",
        f"taskq_worker_received_total {hub.stats.received}",
        "# TYPE taskq_worker_task_seconds_total counter",
        f"taskq_worker_task_seconds_total {hub.stats.runtime_us / 1e6:.6f}",
        "# TYPE taskq_worker_slots gauge",
        f'taskq_worker_slots{{state="all"}} {hub.pool.slots}',
        f'taskq_worker_slots{{state="idle"}} {hub.pool.idle_slots()}',
        "# TYPE taskq_worker_ready gauge",
        f"taskq_worker_ready {0 if readiness(hub) else 1}",
    ]
    return "\n".join(lines) + "\n"


def respond(hub: "Hub", path: str) -> tuple[str, str]:
    """Return (HTTP status, body) for a path."""
    if path == "/livez":
        return "200 OK", "ok\n"
    if path == "/readyz":
        why = readiness(hub)
        return ("503 Service Unavailable", f"{why}\n") if why else ("200 OK", "ok\n")
    if path == "/metrics":
        return "200 OK", metrics(hub)
    return "404 Not Found", "try /livez, /readyz or /metrics\n"


async def serve(hub: "Hub", port: int) -> asyncio.Server:
    """Listen on all interfaces at this port.

    Raises:
        OSError: If the port is taken.
    """

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, TimeoutError, ValueError, asyncio.IncompleteReadError):
            line = await asyncio.wait_for(reader.readline(), _TIMEOUT_S)
            parts = line.decode("latin-1").split()
            path = parts[1].partition("?")[0] if len(parts) > 1 else ""
            status, body = respond(hub, path)
            data = body.encode()
            head = (
                f"HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\n"
                f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n"
            )
            writer.write(head.encode() + data)
            await asyncio.wait_for(writer.drain(), _TIMEOUT_S)
        writer.close()

    return await asyncio.start_server(handle, None, port)
