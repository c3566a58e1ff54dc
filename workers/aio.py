"""`async def` tasks: many open connections in few processes. Coroutines on an event loop.

A task here must not block: while one computes, its whole executor waits.
"""

queues = ("aio",)
pool = "asyncio"
concurrency = 200
executors = 1
grace_s = 25
