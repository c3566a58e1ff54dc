"""Logging of a worker: text or JSON lines on stderr; task, id and attempt, never arguments."""

import json
import logging
import sys
import time
from typing import Any

_EXTRA = ("task", "task_id", "attempt", "queue", "state")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and a task's fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as a line of JSON."""
        line: dict[str, Any] = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}"
            f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name in _EXTRA:
            value = record.__dict__.get(name)
            if value is not None:
                line[name] = value
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def set_up(level: str, form: str) -> None:
    """Send the `taskq` loggers to stderr; other loggers are left alone.

    Args:
        level: `debug`, `info`, `warning` or `error`.
        form: `text` or `json`.
    """
    handler = logging.StreamHandler(sys.stderr)
    if form == "json":
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(
            logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")
        )
    logger = logging.getLogger("taskq")
    logger.handlers[:] = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False
