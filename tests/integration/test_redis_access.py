"""How the Redis store is reached, and what is said when it is not."""

import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from processes import free_port, wait_for
from servers import RedisServer

from taskq import outcome
from taskq.errors import ConfigError, ResultsUnavailable
from taskq.results.base import Record, Write, encode_record
from taskq.results.redis import RedisResults


def success(task_id: str, worker: str = "", attempt: int = 0) -> Write:
    record = Record(outcome.SUCCESS, attempt, worker=worker)
    return Write(task_id, encode_record(record), 60)


def refused_as(url: str, error: type[Exception], timeout_s: float = 5.0) -> str:
    """Return the message of the error that a store at `url` ends in, and check its time."""
    began = time.monotonic()
    with closing(RedisResults(url, timeout_s)) as store, pytest.raises(error) as caught:
        store.fetch(["a"])
    assert time.monotonic() - began < timeout_s + 1.0
    return str(caught.value)


def test_a_closed_port_is_unavailable_at_once() -> None:
    """Redis that is down is the commonest fault; the message says where it was looked for."""
    port = free_port()

    message = refused_as(f"redis://:secret@127.0.0.1:{port}/3", ResultsUnavailable, timeout_s=1.0)

    assert f"redis://:***@127.0.0.1:{port}/3" in message
    assert "secret" not in message


def test_a_server_that_does_not_answer_is_unavailable_in_time(private_redis: RedisServer) -> None:
    """A stopped process or a dropped packet gives no error by itself."""
    with closing(RedisResults(private_redis.url, timeout_s=0.5)) as store:
        store.ping()
        private_redis.pause()
        calls: list[Callable[[], object]] = [
            store.ping,
            lambda: store.store([success("a")]),
            lambda: store.mark_pending(["a"], 60),
            lambda: store.watch("a", print),
        ]
        for call in calls:
            began = time.monotonic()
            with pytest.raises(ResultsUnavailable):
                call()
            assert time.monotonic() - began < 1.2
        private_redis.resume()
        assert store.ping() < 0.5


def test_a_port_that_speaks_something_else_is_unavailable_in_time() -> None:
    """The URL of a web server or of RabbitMQ, by mistake."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)

        def serve() -> None:
            peer, _ = listener.accept()
            peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            peer.close()

        server = threading.Thread(target=serve)
        server.start()
        url = f"redis://127.0.0.1:{listener.getsockname()[1]}/0"

        refused_as(url, ResultsUnavailable, timeout_s=2.0)
        server.join()


@pytest.mark.parametrize("credentials", ["", ":wrong@", "app:wrong@", "nobody:secret@"])
def test_wrong_credentials_are_a_configuration_error(
    private_redis: RedisServer, credentials: str
) -> None:
    """Trying again would not help; and no log may carry the password."""
    private_redis.ctl("ACL", "SETUSER", "app", "on", ">right", "~*", "&*", "+@all")
    private_redis.ctl("CONFIG", "SET", "requirepass", "secret")
    place = f"127.0.0.1:{private_redis.port}/0"

    message = refused_as(f"redis://{credentials}{place}", ConfigError)

    assert place in message
    assert "wrong" not in message
    assert "secret" not in message
    for right in (":secret@", "default:secret@", "app:right@"):
        with closing(RedisResults(f"redis://{right}{place}")) as store:
            store.ping()
            assert right.partition(":")[2] not in store.url + repr(store.__dict__)


def test_an_acl_user_with_the_documented_rights_can_do_everything(
    private_redis: RedisServer,
) -> None:
    """The docstring tells administrators what to grant."""
    rights = (
        "+get +mget +set +incrby +ttl +expire +pexpireat +unlink +zadd +zrem +zrevrange "
        "+zrangebyscore +hgetall +hset +hdel +time +eval +evalsha +publish +subscribe +unsubscribe"
    )
    private_redis.ctl(
        *["ACL", "SETUSER", "app", "on", ">pass", "~taskq:*", "&taskq:*", "+ping", "+select"],
        *rights.split(),
    )
    url = f"redis://app:pass@127.0.0.1:{private_redis.port}/2"
    seen: list[bytes] = []
    with closing(RedisResults(url)) as store:
        store.mark_pending(["a"], 60)
        store.watch("a", seen.append)
        assert store.store([success("a")]) == [True]
        assert store.count_starts(["a"], 60) == [1]
        assert store.cancel(["a"], success("a").record, 60) == ["SUCCESS"]
        store.add_rule(b"rule", 2**52)
        assert [rule for _, rule in store.fetch_news(["a"], 0)[1]] == [b"rule"]
        wait_for(lambda: bool(seen), 5, "the call back")
        store.forget(["a"])

    with closing(RedisResults(f"{url}?prefix=other")) as store, pytest.raises(ConfigError):
        store.fetch(["a"])


def test_a_database_that_does_not_exist_is_a_configuration_error(
    private_redis: RedisServer,
) -> None:
    """Redis has 16 of them by default."""
    message = refused_as(f"redis://127.0.0.1:{private_redis.port}/99", ConfigError)

    assert "database" in message


def test_unix_sockets_work(private_redis: RedisServer) -> None:
    """The usual way on one machine."""
    url = f"unix://{private_redis.socket_path}?db=3&prefix=shop"
    with closing(RedisResults(url)) as store:
        assert store.store([success("a")]) == [True]

    assert private_redis.ctl("KEYS", "*", url=f"{private_redis.url[:-1]}3") == [b"shop:result:a"]


def test_tls_checks_the_certificate(tmp_path: Path, new_redis: Callable[..., RedisServer]) -> None:
    """rediss:// that took any certificate would be no better than redis://."""
    if not shutil.which("openssl"):
        pytest.skip("needs openssl: apt-get install openssl")
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    argv = ["openssl", "req", "-x509", "-days", "2", *new_key, *files, *subject]
    subprocess.run(argv, check=True, capture_output=True)
    port = free_port()
    tls = [f"tls-port {port}", f"tls-cert-file {certificate}", f"tls-key-file {key}"]
    new_redis(*tls, "tls-auth-clients no")

    refused_as(f"rediss://127.0.0.1:{port}/0", ResultsUnavailable)
    with closing(RedisResults(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={certificate}")) as store:
        seen: list[bytes] = []
        store.watch("a", seen.append)
        assert store.store([success("a")]) == [True]
        wait_for(lambda: bool(seen), 5, "the call back")
