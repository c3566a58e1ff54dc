"""The app that the benchmarks run."""

from taskq import TaskQ

app = TaskQ("bench")


@app.task(name="bench.noop")
def noop() -> None:
    """Do nothing."""


@app.task(name="bench.echo")
def echo(value: int) -> int:
    """Return the argument."""
    return value
