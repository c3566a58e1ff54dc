"""The task of this example: measure one file."""

import hashlib
import os
from typing import TypedDict

from taskq import TaskQ

app = TaskQ("checksums", default_queue="checksums", result_ttl_s=3600)

CHUNK_BYTES = 1 << 20


class Measured(TypedDict, total=False):
    """What is known of a file: `error` alone, or all the others."""

    sha256: str
    size: int
    lines: int
    longest: int
    error: str


@app.task(name="checksums.measure", max_retries=0)
def measure(path: bytes) -> Measured:
    """Read a file once and return its SHA-256, bytes, lines, and the bytes of its longest line.

    The path is bytes, for a file's name need not be text. A line ends with a newline, which does
    not count; what follows the last newline is a line when there is anything.
    """
    digest = hashlib.sha256()
    size = lines = longest = unfinished = 0
    try:
        # A link put here since the walk must not lead elsewhere.
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb", buffering=0) as file:
            # In chunks: a file of any size fits, even one that is a single line.
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
                first, *others = chunk.split(b"\n")
                unfinished += len(first)
                if others:
                    lines += len(others)
                    longest = max(longest, unfinished, *map(len, others[:-1]))
                    unfinished = len(others[-1])
    except OSError as error:
        # An answer, not a failure: no retry makes it readable, and nobody needs a dead letter.
        return {"error": error.strerror or type(error).__name__}
    return {
        "sha256": digest.hexdigest(),
        "size": size,
        "lines": lines + bool(unfinished),
        "longest": max(longest, unfinished),
    }
