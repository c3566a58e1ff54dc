"""What a worker says of itself: logs, health, metrics."""

import json
import socket
import urllib.error
import urllib.request

import pytest
from fleet import POOLS, Fleet, until
from processes import free_port

SECRET = "s3cr3t-card-number"


@pytest.mark.parametrize("pool", POOLS)
def test_a_healthy_worker_logs_no_error(fleet: Fleet, pool: str) -> None:
    """An alert on ERROR must mean something; so must a traceback."""
    worker = fleet.start("-l", "debug", pool=pool)

    fleet.settled(fleet.send_many("nap", 50))
    code = worker.term()

    log = worker.log()
    assert code == 0
    assert "ERROR" not in log
    assert "WARNING" not in log
    assert "Traceback" not in log
    assert "Exception" not in log


@pytest.mark.parametrize("pool", POOLS)
def test_lines_name_task_id_and_attempt_but_never_arguments(fleet: Fleet, pool: str) -> None:
    """Arguments are the users' data; logs go to places where those may not."""
    worker = fleet.start("-l", "debug", pool=pool)

    good = fleet.send("nap", 0, SECRET)
    bad = fleet.send("fail", SECRET)
    misfit = fleet.app.send_task("nap", kwargs={SECRET: SECRET})
    unknown = fleet.send("unheard_of", SECRET)

    good.get(timeout=20)
    with pytest.raises(ValueError, match=SECRET):
        bad.get(timeout=20)
    until(misfit.ready, "the end of the misfit")
    worker.until_log("parked unknown task")
    worker.term()
    log = worker.log()
    assert f"succeeded task=nap id={good.id} attempt=1" in log
    assert f"retrying task=fail id={bad.id} attempt=1" in log
    assert f"failed task=fail id={bad.id} attempt=3" in log
    assert f"malformed task=nap id={misfit.id} attempt=1" in log
    assert f"parked unknown task task=unheard_of id={unknown.id}" in log
    assert SECRET not in log


def test_json_lines_carry_the_same_as_fields(fleet: Fleet) -> None:
    """Log stores index fields, not sentences."""
    worker = fleet.start("-l", "debug", "--log-format", "json", slots=1)

    handle = fleet.send("asks_again", 0, 1)

    handle.get(timeout=20)
    worker.term()
    lines = [json.loads(line) for line in worker.log().splitlines()]
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    about = [line for line in lines if line.get("task_id") == handle.id]
    assert [(line["task"], line["attempt"], line["state"]) for line in about] == [
        ("asks_again", 1, "RETRY"),
        ("asks_again", 2, "SUCCESS"),
    ]
    assert {line["queue"] for line in about} == {"default"}


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.mark.parametrize("pool", ["process", "solo"])
def test_health_and_metrics_are_served(fleet: Fleet, pool: str) -> None:
    """Kubernetes asks whether to restart it, and whether it would work; Prometheus how much."""
    port = free_port()
    worker = fleet.start("--health-port", str(port), pool=pool)

    fleet.settled(fleet.send_many("nap", 5))
    with pytest.raises(ValueError, match="never again"):
        fleet.send("not_retried").get(timeout=20)

    assert get(port, "/livez") == (200, "ok\n")
    assert get(port, "/readyz") == (200, "ok\n")
    assert get(port, "/nowhere")[0] == 404
    status, text = get(port, "/metrics")
    assert status == 200
    assert 'taskq_worker_tasks_total{state="success"} 5' in text
    assert 'taskq_worker_tasks_total{state="failure"} 1' in text
    assert "taskq_worker_ready 1" in text
    assert worker.term() == 0


def test_a_worker_that_stops_is_alive_but_not_ready(fleet: Fleet) -> None:
    """While its last tasks finish it must neither be killed nor be given work."""
    port = free_port()
    worker = fleet.start("--health-port", str(port), slots=1)
    fleet.send("nap", 2.0)
    fleet.until_runs(1)

    worker.signal(15)
    worker.until_log("signal SIGTERM")

    assert get(port, "/livez")[0] == 200
    assert get(port, "/readyz") == (503, "stopping\n")
    assert worker.wait() == 0


def test_a_health_port_that_is_taken_is_a_configuration_error(sqlite_fleet: Fleet) -> None:
    """Two workers on one host with one profile: the second must say why."""
    port = free_port()
    sqlite_fleet.start("--health-port", str(port))

    worker = sqlite_fleet.start("--health-port", str(port), ready=False)

    assert worker.wait() == 78
    assert str(port) in worker.log()


def test_a_slow_client_does_not_hold_the_health_port(sqlite_fleet: Fleet) -> None:
    """Whoever connects and says nothing must not keep the probes from their answer."""
    port = free_port()
    worker = sqlite_fleet.start("--health-port", str(port))
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
    idle[0].sendall(b"\xff" * 100_000)

    assert get(port, "/livez") == (200, "ok\n")

    for each in idle:
        each.close()
    assert worker.term(timeout_s=5) == 0
    assert "Traceback" not in worker.log()
