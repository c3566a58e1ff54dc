"""What a worker answers to `taskq inspect`: a table of commands, which change nothing.

`cancel` only makes it look sooner at what is stored; see `revoker`.
"""

import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taskq.worker.hub import Hub


def answer(hub: "Hub", request: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a worker's answer to a control request, or None to stay silent.

    Args:
        hub: The worker.
        request: `{"command": name, "worker": name of one worker or absent}`.
    """
    wanted = request.get("worker")
    if wanted and wanted != hub.name:
        return None
    if request.get("command") == "cancel":
        return {"worker": hub.name, **hub.revoker.answer(request)}
    command = _COMMANDS.get(str(request.get("command")))
    if command is None:
        return {"worker": hub.name, "error": f"unknown command {request.get('command')!r}"}
    return {"worker": hub.name, **command(hub)}


def _ping(hub: "Hub") -> dict[str, Any]:
    return {"ok": "pong"}


def _workers(hub: "Hub") -> dict[str, Any]:
    running = list(hub.pool.running())
    return {
        "app": hub.manifest.app,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "pool": hub.settings.pool,
        "slots": hub.pool.slots,
        "running": len(running),
        "queues": list(hub.queues),
        "executors": [child.pid for child in hub.pool.children],
        "state": "stopping" if hub.quiet else "consuming" if hub.connected else "waiting",
        "paused": hub.pauses.summary(),
        "uptime_s": round(time.monotonic() - hub.stats.started_s, 1),
    }


def _active(hub: "Hub") -> dict[str, Any]:
    tasks = [
        {
            "id": held.delivery.message.id,
            "task": held.delivery.message.task,
            "queue": held.delivery.queue,
            "attempt": held.envelope.retries + 1,
            "runtime_s": round(ran_s, 3),
            "pid": child.pid or os.getpid(),
            "cancelled": bool(held.cancelled_s),
        }
        for child, held, ran_s in hub.pool.running()
    ]
    return {"tasks": tasks}


def _registered(hub: "Hub") -> dict[str, Any]:
    return {
        "tasks": [
            {"task": info.name, "queue": info.queue, "max_retries": info.max_retries}
            for info in sorted(hub.manifest.tasks.values(), key=lambda info: info.name)
        ]
    }


def _stats(hub: "Hub") -> dict[str, Any]:
    return {
        **hub.stats.summary(),
        "prefetch": hub.prefetch,
        "held": len(hub.held),
        "unsettled": hub.unsettled,
        "mean_runtime_s": round(max(hub.pace.mean_s, 0.0), 6),
    }


def _held(hub: "Hub") -> dict[str, Any]:
    counts = Counter(held.delivery.queue for held in hub.held.values())
    return {
        "queues": dict(counts),
        "consumes": list(hub.queues),
        "paused": sorted(hub.pauses.queues),
    }


def _look(hub: "Hub") -> dict[str, Any]:
    hub.pauses.look()
    return {"ok": "looking"}


def _unknown(hub: "Hub") -> dict[str, Any]:
    return {"tasks": hub.stats.unknown()}


_COMMANDS: dict[str, Callable[["Hub"], dict[str, Any]]] = {
    "ping": _ping,
    "workers": _workers,
    "active": _active,
    "registered": _registered,
    "stats": _stats,
    "unknown": _unknown,
    "held": _held,
    "look": _look,
}
