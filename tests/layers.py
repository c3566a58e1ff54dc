"""Which module of taskq may import which: the table behind the rule on layers."""

ROWS: dict[str, int] = {
    **dict.fromkeys(("errors", "clock", "_version"), 0),
    **dict.fromkeys(("config", "codecs", "message", "body", "envelope"), 1),
    **dict.fromkeys(("flow", "flow.spec", "flow.keys", "flow.asks", "flow.rules"), 1),
    **dict.fromkeys(("flow.returns", "flow.declared", "flow.once"), 1),
    **dict.fromkeys(("flow.store",), 2),
    **dict.fromkeys(("redact",), 1),
    **dict.fromkeys(("ids", "cancels", "steering"), 1),
    **dict.fromkeys(("plain", "request", "resend", "retry"), 1),
    **dict.fromkeys(("outcome", "embedded", "embedded.*", "schedules", "schedules.*"), 1),
    **dict.fromkeys(("brokers", "brokers.base", "brokers.replay", "results", "results.base"), 2),
    **dict.fromkeys(("middleware", "middleware_mixed", "events", "events.*"), 2),
    **dict.fromkeys(("spec", "pending", "shared", "cancelling", "timelimits"), 3),
    **dict.fromkeys(("task", "result", "canvas", "calls", "batch", "declare", "hooks"), 3),
    **dict.fromkeys(("brokers.*", "results.*"), 3),
    **dict.fromkeys(("flow.stores", "flow.*"), 3),
    **dict.fromkeys(("schedules.book", "schedules.file"), 3),
    **dict.fromkeys(("schedules.redis_lua", "schedules.redis_store"), 3),
    **dict.fromkeys(("brokers.shapes",), 2),
    **dict.fromkeys(("pauses", "routes"), 3),
    **dict.fromkeys(("app", ""), 4),
    **dict.fromkeys(("worker", "worker.*", "scheduler", "scheduler.*", "dead", "dead.*"), 5),
    **dict.fromkeys(("doctor", "metrics", "testing", "loading"), 5),
    **dict.fromkeys(("torture", "torture.*"), 5),
    **dict.fromkeys(("cli", "cli.*", "dashboard", "dashboard.*", "__main__"), 6),
}
"""Each module's row; it imports its own row or a lower one. `x.*` stands for all below `x`."""
