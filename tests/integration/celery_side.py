"""A Celery application, as one that is there before taskq comes; a real `celery worker` runs it."""

import os
from typing import Any

from celery import Celery

QUEUE = "celery-side"


def make_celery(broker: str, results: str, queue: str) -> Celery:
    """Return an app with the tasks below, whose sends go to `queue`."""
    app = Celery("celery-side", broker=broker, backend=results)
    app.conf.update(
        task_default_queue=queue,
        accept_content=["json", "msgpack"],
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        task_ignore_result=False,
    )

    @app.task(name="mixed.add", shared=False)
    def add(x: int, y: int) -> int:
        return x + y

    @app.task(name="mixed.describe", shared=False)
    def describe(*args: Any, **kwargs: Any) -> list[str]:
        named = [f"{name}={value!r}" for name, value in sorted(kwargs.items())]
        return [repr(value) for value in args] + named

    @app.task(name="mixed.request", shared=False, bind=True)
    def request(self: Any) -> dict[str, Any]:
        return {
            "id": self.request.id,
            "retries": self.request.retries,
            "timelimit": self.request.timelimit,
            "tenant": (self.request.headers or {}).get("tenant"),
            "root_id": self.request.root_id,
            "parent_id": self.request.parent_id,
            "queue": self.request.delivery_info["routing_key"],
        }

    @app.task(name="mixed.fail", shared=False)
    def fail(text: str) -> None:
        raise ValueError(text)

    @app.task(name="mixed.where", shared=False)
    def where() -> str:
        return "celery"

    return app


if "MIXED_BROKER" in os.environ:
    app = make_celery(os.environ["MIXED_BROKER"], os.environ["MIXED_RESULTS"], QUEUE)
