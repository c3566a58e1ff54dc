"""Private RabbitMQ and Redis servers for tests: own ports, own data, 127.0.0.1 only.

Nothing is shared with a server of the machine: each RabbitMQ node has its own epmd, cookie and
configuration. Both run as whoever runs the tests, root included.
"""

import contextlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import uuid
from pathlib import Path
from typing import Any

import processes
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

RABBITMQ_CURE = "apt-get install rabbitmq-server"
REDIS_CURE = "apt-get install redis-server"
_BOOT_TIMEOUT_S = 90.0
_NODE_SETTINGS = """\
[{rabbit, [{dead_letter_worker_publisher_confirm_timeout, 5000},
           {dead_letter_worker_consumer_prefetch, 256}]}].
"""


class ServerMissing(Exception):
    """The server's program is not installed; the message says how to install it."""


class _Server:
    """What RabbitMQ and Redis have in common; a directory holds all of a server's state."""

    name = ""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    @property
    def pid(self) -> int | None:
        """Process id while it runs, else None."""
        return processes.running(self.directory, self.name)

    def start(self) -> None:
        """Start on the same ports and data as before; returns when it answers."""
        raise AssertionError("each server starts in its own way")

    def stop(self) -> None:
        """Shut down in order and wait for the end; data stays."""
        processes.end(self.directory, self.name, signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL, as a crash: nothing is flushed, no connection is closed in order."""
        processes.end(self.directory, self.name, signal.SIGKILL)

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nothing answers, like a black hole."""
        if (pid := self.pid) is not None:
            os.kill(pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT after `pause`."""
        if (pid := self.pid) is not None:
            os.kill(pid, signal.SIGCONT)

    def restart(self) -> None:
        """Stop in order and start again."""
        self.stop()
        self.start()

    def destroy(self) -> None:
        """End at once and remove all data."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)


class RabbitServer(_Server):
    """One RabbitMQ node with a private epmd.

    Attributes:
        port: Where AMQP is spoken, on 127.0.0.1; kept in the directory across restarts.
        settings: More lines of `rabbitmq.conf`, for the next start.
    """

    name = "rabbitmq"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._programs = self._find_programs()
        self._base = self._make_base()
        self.settings = ""
        self._ports = directory / "ports"
        if not self._ports.exists():
            self._ports.write_text(" ".join(str(processes.free_port()) for _ in range(3)))
        self.port, self._dist_port, self._epmd_port = map(int, self._ports.read_text().split())
        self._version = ""

    # What another version of RabbitMQ does in its own way

    def _find_programs(self) -> Path:
        programs = [
            Path("/usr/lib/rabbitmq/bin"),
            Path(os.path.realpath(shutil.which("rabbitmq-server") or "/nowhere/x")).parent,
        ]
        # Debian's program in PATH changes to the user rabbitmq; those beside the library do not.
        found = [path for path in programs if (path / "rabbitmq-env").exists()]
        if not found or not shutil.which("epmd"):
            raise ServerMissing(f"needs RabbitMQ: {RABBITMQ_CURE}")
        return found[0]

    def _make_base(self) -> Path:
        """Return the directory of the node's data."""
        return self.directory

    def _inside(self, path: Path) -> str:
        """Return a path as the node sees it."""
        return str(path)

    def _argv(self, program: str) -> list[str]:
        """Return the command line that begins with a program."""
        return [program]

    @property
    def url(self) -> str:
        """URL of the default vhost."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    @property
    def version(self) -> str:
        """Such as `3.10.8`; asks the running node once."""
        if not self._version:
            self._version = self.eval("rabbit_misc:version()").strip('"')
        return self._version

    @property
    def _env(self) -> dict[str, str]:
        base = self._inside(self._base)
        return {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "HOME": f"{base}/home",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"tests{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_MNESIA_BASE": f"{base}/data",
            "RABBITMQ_LOG_BASE": f"{base}/log",
            "RABBITMQ_CONFIG_FILE": f"{base}/rabbitmq.conf",
            "RABBITMQ_ADVANCED_CONFIG_FILE": f"{base}/advanced.config",
            "RABBITMQ_CONF_ENV_FILE": f"{base}/env.conf",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{base}/enabled_plugins",
            "RABBITMQ_PID_FILE": f"{base}/node.id",
            # Makes the script become the node, so that a SIGKILL hits the broker, not a shell.
            "RABBITMQ_ALLOW_INPUT": "1",
            "TEST_BROKER_CTL": f"{base}/ctl",
        }

    def start(self) -> None:
        """Boot the node; returns when it takes connections, after 5 to 10 s."""
        base = self._base
        for part in ("home", "data", "log"):
            (base / part).mkdir(exist_ok=True)
        (base / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\nlog.file.level = warning\n{self.settings}"
        )
        (base / "advanced.config").write_text(_NODE_SETTINGS)
        (base / "enabled_plugins").write_text("[].\n")
        (base / "env.conf").write_text("")
        (base / "ctl").unlink(missing_ok=True)
        if processes.running(self.directory, "epmd") is None:
            epmd = [*self._argv("epmd"), "-port", str(self._epmd_port), "-address", "127.0.0.1"]
            processes.spawn(epmd, self._env, self.directory, "epmd")
        script = shutil.copy(Path(__file__).with_name("broker_ctl.erl"), base)
        argv = [*self._argv(self._inside(self._programs / "rabbitmq-server")), "-noinput"]
        argv += ["-kernel", "inet_dist_use_interface", "{127,0,0,1}"]
        argv += ["-eval", f'spawn(fun() -> file:script("{self._inside(Path(script))}") end).']
        processes.spawn(argv, self._env, self.directory, self.name)
        processes.wait_for(self._is_up, _BOOT_TIMEOUT_S, "the start of RabbitMQ")

    def _is_up(self) -> bool:
        if self.pid is None:
            raise RuntimeError(f"RabbitMQ ended while starting:\n{self.output()}")
        with contextlib.suppress(OSError):
            if self.eval("rabbit:is_running()") == "true":
                socket.create_connection(("127.0.0.1", self.port), 5).close()
                return True
        return False

    def output(self) -> str:
        """Return the last lines the node wrote."""
        return processes.tail(self.directory, self.name)

    def eval(self, expression: str, timeout_s: float = 30.0) -> str:
        """Evaluate an Erlang expression inside the node, in milliseconds, and return its value.

        Such as `vm_memory_monitor:set_vm_memory_high_watermark(0.0)` for a memory alarm.
        """
        data = f"{expression}.".encode()
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(timeout_s)
            link.connect(str(self._base / "ctl"))
            link.sendall(struct.pack(">I", len(data)) + data)
            stream = link.makefile("rb")
            (size,) = struct.unpack(">I", stream.read(4).rjust(4, b"\0"))
            verdict, _, value = stream.read(size).decode().partition(" ")
            stream.close()
        if verdict != "ok":
            raise RuntimeError(f"the node answered {verdict!r} {value} to: {expression}")
        return value

    def ctl(self, *words: str, timeout_s: float = 60.0) -> str:
        """Run `rabbitmqctl -q` against the node and return what it prints; takes about 1 s."""
        argv = [*self._argv(self._inside(self._programs / "rabbitmqctl")), "-q", *words]
        done = subprocess.run(
            argv, env=self._env, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        if done.returncode:
            raise RuntimeError(f"rabbitmqctl {' '.join(words)}: {done.stderr}{done.stdout}")
        return done.stdout

    def kill(self, settle: bool = True) -> None:
        """SIGKILL, as a crash.

        RabbitMQ 3.10 writes the table of its quorum queues up to 3 s late: a queue declared just
        before a crash comes back dead, its confirmed messages lost, whatever the client does.

        Args:
            settle: Whether to have that table written first, so that a test sees taskq's faults.
        """
        if settle and self.pid is not None:
            # One that is paused cannot answer.
            with contextlib.suppress(OSError, RuntimeError):
                self.eval("[dets:sync(Table) || Table <- dets:all()]", timeout_s=2)
        super().kill()

    def add_vhost(self) -> str:
        """Make an empty vhost for `guest` and return its URL; 12 ms."""
        name = f"t{uuid.uuid4().hex[:12]}"
        self.eval(
            f'ok = rabbit_vhost:add(<<"{name}">>, <<"tests">>),'
            f'ok = rabbit_auth_backend_internal:set_permissions(<<"guest">>, <<"{name}">>,'
            '<<".*">>, <<".*">>, <<".*">>, <<"tests">>)'
        )
        return f"amqp://guest:guest@127.0.0.1:{self.port}/{name}"

    def drop_vhost(self, url: str) -> None:
        """Remove a vhost made by `add_vhost`, with all it holds; does not wait for it."""
        name = url.rpartition("/")[2]
        self.eval(f'spawn(fun() -> rabbit_vhost:delete(<<"{name}">>, <<"tests">>) end)')

    def destroy(self) -> None:
        """End node and epmd at once and remove all data."""
        self.kill(settle=False)
        processes.end(self.directory, "epmd", signal.SIGKILL)
        super().destroy()


class RedisServer(_Server):
    """One Redis server.

    Attributes:
        port: Where it listens, on 127.0.0.1; kept in the directory across restarts.
        socket_path: Its Unix socket.
        databases: How many database numbers it has.
    """

    name = "redis"

    def __init__(
        self, directory: Path, *settings: str, durable: bool = False, databases: int = 16
    ) -> None:
        """Prepare a server.

        Args:
            directory: Where its data and pid file live.
            *settings: More lines of its configuration, such as `requirepass secret`.
            durable: Whether what was answered survives `kill`.
            databases: How many database numbers it has.
        """
        super().__init__(directory)
        program = shutil.which("redis-server") or shutil.which("valkey-server")
        if not program:
            raise ServerMissing(f"needs Redis: {REDIS_CURE}")
        self._program = program
        self._settings = settings
        self._durable = durable
        self.databases = databases
        ports = directory / "ports"
        if not ports.exists():
            ports.write_text(str(processes.free_port()))
        self.port = int(ports.read_text())
        self.socket_path = directory / "socket"
        self._version = ""

    @property
    def url(self) -> str:
        """URL of database 0, without credentials."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def version(self) -> str:
        """Such as `7.0.15`; asks the running server once."""
        if not self._version:
            self._version = self.ctl("INFO", "server")["redis_version"]
        return self._version

    def start(self) -> None:
        """Start; well under a second."""
        lines = [
            "bind 127.0.0.1",
            f"port {self.port}",
            f"unixsocket {self.socket_path}",
            f"dir {self.directory}",
            f"databases {self.databases}",
            'save ""',
            # Written to the file before each answer, so that only a power failure loses any.
            f"appendonly {'yes' if self._durable else 'no'}",
            "appendfsync no",
            *self._settings,
        ]
        config = self.directory / "redis.conf"
        config.write_text("\n".join(lines) + "\n")
        env = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
        processes.spawn([self._program, str(config)], env, self.directory, self.name)
        processes.wait_for(self._is_up, 30, "the start of Redis")

    def _is_up(self) -> bool:
        if self.pid is None:
            output = processes.tail(self.directory, self.name)
            raise RuntimeError(f"Redis ended while starting:\n{output}")
        try:
            self.ctl("PING")
        except redis.AuthenticationError:
            return True
        except redis.RedisError:
            return False
        return True

    def ctl(self, *words: Any, url: str = "") -> Any:
        """Send one command on a connection of its own and return the answer.

        Args:
            *words: Such as `"SCRIPT", "FLUSH"`.
            url: With credentials or another database; `self.url` when empty.
        """
        once = Retry(NoBackoff(), 0)
        client = redis.Redis.from_url(url or self.url, socket_timeout=10, retry=once)
        with contextlib.closing(client):
            return client.execute_command(*words)
