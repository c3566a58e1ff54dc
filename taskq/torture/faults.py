"""The faults: what each does, and how many tasks may begin again because of it."""

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from taskq.app import TaskQ
from taskq.brokers.base import Outgoing
from taskq.errors import ConfigError, TaskqError
from taskq.message import Message
from taskq.torture.fleet import Fleet, Worker
from taskq.torture.proxy import Proxy
from taskq.torture.tasks import QUEUE

_COMMAND_S: Final = 300.0


@dataclass(slots=True)
class Bench:
    """What faults act on.

    Attributes:
        app: The client.
        fleet: The workers.
        rng: Decides about moments and victims.
        proxies: In front of the servers; empty on the embedded broker.
        broker_command: Restarts the broker, as the user does it.
        results_command: Restarts the results store.
    """

    app: TaskQ
    fleet: Fleet
    rng: random.Random
    proxies: list[Proxy] = field(default_factory=list)
    broker_command: str = ""
    results_command: str = ""

    def victim(self) -> Worker:
        """Return a worker to be hit."""
        return self.rng.choice(self.fleet.workers)


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault.

    Attributes:
        name: As in `--faults`.
        what: What it does, in a line.
        strike: Does it once, and undoes what would not end by itself.
        pause_s: Shortest and longest pause before each, in seconds.
        repeats: How many runs one strike may begin again within an attempt: per worker that was
            hit, its slots and what it has finished and not settled.
        network: Whether it needs proxies.
        command: Which command it needs: `broker`, `results`, or empty.
    """

    name: str
    what: str
    strike: Callable[[Bench], None]
    pause_s: tuple[float, float] = (0.5, 2.0)
    repeats: bool = True
    network: bool = False
    command: str = ""


def _kill(bench: Bench) -> None:
    worker = bench.victim()
    worker.kill()
    bench.fleet.replace(worker)
    # One that is killed before it has begun shows nothing.
    bench.fleet.wait_ready()


def _executor(bench: Bench) -> None:
    pids = bench.victim().executors()
    if pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(bench.rng.choice(pids), signal.SIGKILL)


def _stop(bench: Bench) -> None:
    worker = bench.victim()
    worker.signal(signal.SIGSTOP)
    time.sleep(bench.rng.uniform(1.0, 4.0))
    worker.signal(signal.SIGCONT)


def _restart(bench: Bench) -> None:
    worker = bench.victim()
    code = worker.stop()
    if code:
        raise TaskqError(f"a worker that was stopped in order ended with {code}")
    bench.fleet.replace(worker)
    bench.fleet.wait_ready()


def _reset(bench: Bench) -> None:
    for proxy in bench.proxies:
        proxy.reset()


def _hole(bench: Bench) -> None:
    proxy = bench.rng.choice(bench.proxies)
    up = bench.rng.random() < 0.7
    proxy.silence(up=up, down=not up or bench.rng.random() < 0.5)
    time.sleep(bench.rng.uniform(1.0, 8.0))
    proxy.speak()


def _half_open(bench: Bench) -> None:
    for proxy in bench.proxies:
        proxy.forget_old()


def _slow(bench: Bench) -> None:
    for proxy in bench.proxies:
        proxy.slow(bench.rng.uniform(0.01, 0.3))
    time.sleep(3.0)
    for proxy in bench.proxies:
        proxy.slow(0)


def _malformed(bench: Bench) -> None:
    bodies = [bench.rng.randbytes(bench.rng.randrange(200)) for _ in range(20)]
    kinds = ("application/x-msgpack", "application/json", "application/x-nonsense")
    garbage = [
        Outgoing(QUEUE, Message(id="", task="torture.work", content_type=kind, body=body))
        for body in bodies
        for kind in kinds
    ]
    bench.app.broker.publish(garbage, bench.app.settings.publish_timeout_s)


def _run(command: str) -> None:
    done = subprocess.run(
        command,
        shell=True,
        capture_output=True,
        text=True,
        timeout=_COMMAND_S,
        check=False,
    )
    if done.returncode:
        raise ConfigError(f"{command!r} ended with {done.returncode}: {done.stderr[-500:]}")


def _broker(bench: Bench) -> None:
    _run(bench.broker_command)


def _results(bench: Bench) -> None:
    _run(bench.results_command)


FAULTS: Final = (
    Fault("none", "no fault: load alone", lambda _: None, repeats=False),
    Fault("kill", "SIGKILL to a worker with all its processes, which is then replaced", _kill),
    Fault("executor", "SIGKILL to one executor of a worker", _executor, repeats=False),
    Fault("stop", "SIGSTOP to a worker's hub for 1 to 4 s, longer than its lease", _stop),
    Fault("restart", "TERM to a worker, which is then replaced", _restart, repeats=False),
    Fault("malformed", "60 unreadable messages", _malformed, repeats=False),
    Fault("net", "RST to every connection", _reset, network=True),
    Fault(
        "half-open",
        "every connection falls silent for good, new ones work",
        _half_open,
        (3, 8),
        network=True,
    ),
    Fault(
        "hole",
        "nothing passes, in one direction or both, for 1 to 8 s",
        _hole,
        (2, 4),
        network=True,
    ),
    Fault("slow", "10 to 300 ms more for each packet, for 3 s", _slow, network=True),
    Fault(
        "broker", "what --broker-command does, such as a restart", _broker, (3, 8), command="broker"
    ),
    Fault(
        "results",
        "what --results-command does, such as a restart",
        _results,
        (3, 8),
        command="results",
    ),
)
"""All faults, in the order in which they are tried."""


def choose(names: str, *, servers: bool, commands: set[str]) -> list[Fault]:
    """Return the faults that are named and can be caused here.

    Args:
        names: Names with commas between; empty for all that can be caused.
        servers: Whether broker and results are servers, with a network in between.
        commands: For which of `broker` and `results` there is a command.

    Raises:
        ConfigError: For a name that is unknown, or a fault that cannot be caused here.
    """
    known = {fault.name: fault for fault in FAULTS}
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if name not in known:
            raise ConfigError(f"no fault {name!r}; known are {', '.join(known)}")
        fault = known[name]
        if fault.network and not servers:
            raise ConfigError(f"fault {name} needs servers with a network in between, not a file")
        if fault.command and fault.command not in commands:
            raise ConfigError(f"fault {name} needs --{fault.command}-command: it is your server")
    if wanted:
        return [known[name] for name in wanted]
    return [
        fault
        for fault in FAULTS
        if (servers or not fault.network) and (not fault.command or fault.command in commands)
    ]
