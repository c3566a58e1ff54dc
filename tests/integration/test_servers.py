"""The harness itself: what other tests rely on without saying so."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pika
import processes
import pytest
from rabbitmq4 import RabbitServer4
from servers import RabbitServer, RedisServer


def declare(url: str, queue: str, passive: bool = False) -> int:
    connection = pika.BlockingConnection(pika.URLParameters(url))
    try:
        channel = connection.channel()
        arguments = {"x-queue-type": "quorum"}
        answer = channel.queue_declare(queue, passive=passive, durable=True, arguments=arguments)
        if not passive:
            channel.confirm_delivery()
            persistent = pika.BasicProperties(delivery_mode=2)
            channel.basic_publish("", queue, b"x", persistent, mandatory=True)
        return int(answer.method.message_count)
    finally:
        connection.close()


def test_each_test_has_a_vhost_of_its_own(shared_rabbitmq: RabbitServer, rabbitmq_url: str) -> None:
    """Tests use literal names such as `default`; a neighbour's messages would appear in them."""
    other = shared_rabbitmq.add_vhost()
    declare(other, "default")

    depth = declare(rabbitmq_url, "default")

    assert depth == 0
    shared_rabbitmq.drop_vhost(other)


def test_each_test_has_a_redis_database_of_its_own(
    shared_redis: RedisServer, redis_url: str
) -> None:
    """A key that another test left must not be seen."""
    assert shared_redis.ctl("DBSIZE", url=redis_url) == 0


def test_a_killed_rabbitmq_comes_back_with_its_confirmed_messages(
    private_rabbitmq: RabbitServer,
) -> None:
    """Fault tests kill the broker and expect the same port and the same data afterwards."""
    url = private_rabbitmq.add_vhost()
    declare(url, "kept")

    private_rabbitmq.kill()
    assert private_rabbitmq.pid is None
    private_rabbitmq.start()

    # The queue counts 0 until it has elected its leader again.
    processes.wait_for(lambda: declare(url, "kept", passive=True) == 1, 15, "the message's return")
    assert url.rpartition("/")[2] in private_rabbitmq.ctl("list_vhosts")


def test_a_killed_redis_comes_back_with_what_it_answered(private_redis: RedisServer) -> None:
    """Fault tests tell what taskq lost from what Redis lost."""
    private_redis.ctl("SET", "key", "value")

    private_redis.kill()
    assert private_redis.pid is None
    private_redis.start()

    assert private_redis.ctl("GET", "key") == b"value"


@pytest.mark.usefixtures("shared_redis")
def test_servers_of_a_killed_run_are_ended_by_the_next(private_directory: Path) -> None:
    """A run that is killed cannot clean up; its servers would stay for ever."""
    program = (
        "import os, processes, servers\n"
        "run = processes.run_directory()\n"
        "server = servers.RedisServer(run / 'redis')\n"
        "server.start()\n"
        "print(run, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    private_directory.mkdir()
    env = {"PATH": os.environ["PATH"], "TMPDIR": str(private_directory)}
    argv = [sys.executable, "-c", program]
    here = Path(processes.__file__).parent
    dead = subprocess.run(argv, cwd=here, env=env, capture_output=True, text=True, check=False)
    left = Path(dead.stdout.strip())
    pid = processes.running(left / "redis", "redis")
    assert dead.returncode == -signal.SIGKILL
    assert pid is not None

    argv[2] = "import processes; processes.remove_run(processes.run_directory())"
    subprocess.run(argv, cwd=here, env=env, check=True)

    assert processes.birth(pid) == ""
    assert not left.exists()
    assert not left.parent.exists()
    private_directory.rmdir()


def test_a_killed_rabbitmq_4_comes_back_with_its_confirmed_messages(
    private_rabbitmq4: RabbitServer4,
) -> None:
    """The same of the newer version, whose data lies inside its own root directory."""
    assert private_rabbitmq4.version.startswith("4.")
    url = private_rabbitmq4.add_vhost()
    declare(url, "kept")

    private_rabbitmq4.kill()
    assert private_rabbitmq4.pid is None
    private_rabbitmq4.start()

    processes.wait_for(lambda: declare(url, "kept", passive=True) == 1, 30, "the message's return")
