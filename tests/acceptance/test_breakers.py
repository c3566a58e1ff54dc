"""Circuit breakers and retry budgets across workers, and `taskq limits`, on both back ends."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fleet import Fleet, until
from flow_runs import APP, lines

from taskq.cli.root import main
from taskq.limits import list_limits


def limits_of(fleet: Fleet, kind: str) -> list[dict[str, Any]]:
    return [row for row in list_limits(fleet.app) if row["kind"] == kind]


def rate_wait_s(fleet: Fleet) -> float:
    return max([row["detail"].get("wait_s", 0) for row in limits_of(fleet, "rate")])


def breaker_state(fleet: Fleet) -> str:
    return next((str(row["state"]) for row in limits_of(fleet, "breaker")), "")


def test_a_breaker_opens_for_all_workers_and_closes_again(fleet: Fleet, tmp_path: Path) -> None:
    """While the service is away tasks wait and spend no attempt; one probe finds it back."""
    workers = [fleet.start(slots=1, app=APP) for _ in range(2)]
    flag = tmp_path / "service"
    handles = fleet.send_many("fragile", 6, str(flag))

    until(lambda: breaker_state(fleet) in ("open", "half-open"), "the breaker to open", 60)
    handles += fleet.send_many("fragile", 6, str(flag))
    until(lambda: fleet.app.broker.due_within(60) >= 3, "tasks that wait", 60)
    failing = len(lines(fleet))
    flag.touch()

    assert fleet.settled(handles, timeout_s=120) == ["answered"] * 12
    # Three failures, what ran beside the third, and a probe every two seconds; not twelve times 20.
    assert failing <= 30
    until(lambda: breaker_state(fleet) in ("closed", ""), "the breaker to close", 30)
    told = "".join(worker.log() for worker in workers)
    assert "circuit breaker opened" in told
    assert "circuit breaker closed" in told


def test_retries_of_all_workers_stay_within_one_budget(fleet: Fleet) -> None:
    """Four tasks that fail at once retry no faster than the budget, and all end."""
    workers = [fleet.start(pool="thread", slots=2, app=APP, ready=False) for _ in range(2)]
    for worker in workers:
        worker.until_log("consuming queues=", timeout_s=60)
    sent_s = time.time()
    handles = fleet.send_many("stormy", 4)

    until(lambda: all(handle.state == "FAILURE" for handle in handles), "the failures", 90)
    retries = [line.at_s for line in lines(fleet) if line.word == "retry"]

    assert len(retries) == 12
    early = [at for at, start_s in enumerate(retries) if start_s < sent_s + (at - 4) / 2]
    assert not early, [round(start_s - sent_s, 2) for start_s in retries]


@pytest.fixture
def cli(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a command line on this fleet's servers, and returns (exit code, output)."""
    monkeypatch.setenv("TASKQ_BROKER", fleet.broker)
    monkeypatch.setenv("TASKQ_RESULTS", fleet.results)
    monkeypatch.setenv("TASKQ_APP", APP)

    def run(*words: str) -> tuple[int, str]:
        # Read anew: an app takes its URLs from the environment when it is made.
        sys.modules.pop("limits_app", None)
        done = CliRunner().invoke(main, words)
        return done.exit_code, done.output

    return run


def test_limits_are_seen_set_and_reset_at_run_time(fleet: Fleet, cli: Any) -> None:
    """A partner asks for less traffic on a Sunday; nobody wants to deploy for that."""
    code, printed = cli("limits", "ls", "--json")
    declared = {row["task"]: row for row in json.loads(printed) if row["kind"] == "rate"}
    assert (code, declared["ten"]["limit"], declared["ten"]["state"]) == (0, "10/s", "declared")

    assert cli("limits", "set", "ten", "--rate", "1/h")[0] == 0
    fleet.start(app=APP)
    handles = fleet.send_many("ten", 5, 1)
    until(lambda: lines(fleet), "the first start", 40)
    until(lambda: rate_wait_s(fleet) > 4.5 * 3600, "the other four to wait", 40)
    rows = json.loads(cli("inspect", "limits", "--json")[1])
    assert any(row["task"] == "ten" and row["state"] == "limiting" for row in rows)

    assert cli("limits", "set", "ten", "--rate", "1000/s")[0] == 0
    more = fleet.send_many("ten", 20, 1)
    fleet.settled(more, timeout_s=60)
    assert len([handle for handle in handles if handle.state == "SUCCESS"]) == 1

    assert cli("limits", "reset", "ten")[0] == 0
    row = next(r for r in json.loads(cli("limits", "ls", "ten", "--json")[1]) if r["key"] is None)
    assert (row["limit"], row["state"]) == ("10/s", "declared")


def test_bad_input_to_limits_is_named(fleet: Fleet, cli: Any) -> None:
    """With what to try, and no traceback."""
    for words, told in [
        (("limits", "set", "ten", "--rate", "often"), "rate"),
        (("limits", "set", "ten"), "nothing to set"),
        (("limits", "set", "tenn", "--rate", "1/s"), "ten"),
        (("limits", "set", "plain", "--rate", "1/s"), "declares no rate_limit"),
        (("limits", "set", "ten", "--concurrency", "3"), "declares no max_concurrency"),
        (("limits", "set", "three", "--concurrency", "0"), "concurrency"),
        (("limits", "reset", "ten", "--kind", "tea"), "tea"),
    ]:
        code, printed = cli(*words)
        assert code in (1, 2, 78), (words, code, printed)
        assert told in printed, printed
        assert "Traceback" not in printed


def test_an_open_breaker_can_be_closed_by_hand(sqlite_fleet: Fleet, tmp_path: Path) -> None:
    """Whoever repaired the service need not wait for the probe."""
    store = sqlite_fleet.app.flow()
    from taskq.flow.asks import Release
    from taskq.flow.keys import cell_name
    from taskq.limits import reset_limits

    cell = cell_name("b", "fragile", "")
    given = Release("a", "n", "f", True, breaker=(cell, 1, 10**9, 10**9))
    assert store.release([given]) == ["opened"]
    assert breaker_state(sqlite_fleet) == "open"

    assert reset_limits(sqlite_fleet.app, "fragile") == 1

    assert breaker_state(sqlite_fleet) == ""
