"""Profiles, docker-compose.yml and the Dockerfile parse, fit together, and name what exists.

There is no container engine in CI, so what an engine would find is checked here: schemas, cross
references, and every command line through the real command line of taskq.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from commandline import load_profile, parse_command, worker_of

from taskq.config import app_settings, worker_settings

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "workers" / "Dockerfile"
PROFILES = sorted((ROOT / "workers").glob("*.py"))


@pytest.fixture(autouse=True)
def in_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Profiles are named relative to the root of the application."""
    monkeypatch.chdir(ROOT)


def seconds(text: str) -> float:
    """Read a compose duration of one unit."""
    value, unit = text[:-1], text[-1]
    return float(value) * {"s": 1, "m": 60, "h": 3600}[unit]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return loaded


# --- profiles


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_a_profile_holds_only_settings_of_a_worker(path: Path) -> None:
    """A misspelt setting would be ignored by nobody: the worker refuses to start."""
    settings = load_profile(path)

    assert settings.queues, "a worker of the fleet names its queues"
    assert settings.grace_s > 0


def test_profiles_divide_the_queues_among_them() -> None:
    """A compute task taken by the threads' worker would hold up everything beside it."""
    queues = [queue for path in PROFILES for queue in load_profile(path).queues]

    assert len(queues) == len(set(queues))
    assert {load_profile(path).pool for path in PROFILES} == {"process", "thread", "asyncio"}


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_no_profile_shadows_the_standard_library(path: Path) -> None:
    """A profile named io.py breaks every Python that is started in its directory."""
    assert path.stem not in sys.stdlib_module_names


# --- docker-compose.yml


def test_the_compose_file_fits_its_schema() -> None:
    """A misspelt key is silently nothing to some engines."""
    tool = shutil.which("check-jsonschema", path=Path(sys.executable).parent)
    if tool is None:
        pytest.skip("check-jsonschema is not installed (extra `dev`)")

    done = subprocess.run(
        [tool, "--builtin-schema", "vendor.compose-spec", str(COMPOSE)],
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stdout + done.stderr


def test_docker_compose_itself_accepts_the_file() -> None:
    """Where an engine's own parser exists, it has the last word."""
    docker = shutil.which("docker")
    if (
        docker is None
        or subprocess.run([docker, "compose", "version"], capture_output=True).returncode
    ):
        pytest.skip("docker compose is not installed")

    done = subprocess.run(
        [docker, "compose", "-f", str(COMPOSE), "config", "-q"], capture_output=True, text=True
    )

    assert done.returncode == 0, done.stderr


def test_compose_refers_only_to_what_it_defines(compose: dict[str, Any]) -> None:
    """The schema does not look across: a misspelt volume or dependency passes it."""
    services = compose["services"]

    for name, service in services.items():
        for needed, how in service.get("depends_on", {}).items():
            assert needed in services, f"{name} depends on {needed}"
            assert how["condition"] != "service_healthy" or "healthcheck" in services[needed]
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source.startswith((".", "/")) or source in compose["volumes"], (
                f"{name}: {source}"
            )
        for network in service.get("networks", []):
            assert network in compose["networks"], f"{name}: {network}"
        for config in service.get("configs", []):
            assert config["source"] in compose["configs"], f"{name}: {config['source']}"
        for file in (service.get("build") or {}).get("dockerfile"), *service.get("env_file", []):
            assert file is None or (ROOT / file).is_file(), f"{name}: {file}"


def test_compose_profiles_leave_no_dependency_behind(compose: dict[str, Any]) -> None:
    """A service that starts always must not need one that starts only under a profile."""
    services = compose["services"]

    for name, service in services.items():
        for needed in service.get("depends_on", {}):
            optional = set(services[needed].get("profiles", []))
            assert not optional or optional >= set(service.get("profiles", [])) != set(), name


def test_everything_in_compose_is_used(compose: dict[str, Any]) -> None:
    """An unused volume is a misspelt one."""
    services = compose["services"].values()

    used = {volume.split(":")[0] for service in services for volume in service.get("volumes", [])}
    configs = {item["source"] for service in services for item in service.get("configs", [])}

    assert used == set(compose["volumes"])
    assert configs == set(compose["configs"])


def test_compose_publishes_on_this_machine_only(compose: dict[str, Any]) -> None:
    """`5672:5672` would open a broker with a known password to the network."""
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]

    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def compose_workers(compose: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, service in compose["services"].items():
        if name.startswith("worker"):
            yield name, service


def test_compose_runs_a_worker_of_each_profile(compose: dict[str, Any]) -> None:
    """Each command goes through the real command line; a renamed option fails here."""
    seen = set()
    for name, service in compose_workers(compose):
        _, options = worker_of(service["command"])
        port = options["health_port"]
        check = " ".join(service["healthcheck"]["test"])
        seen.add(Path(str(options["profile"])).stem)

        assert f":{port}/readyz" in check, name

    assert seen == {path.stem for path in PROFILES}


def test_compose_runs_a_scheduler(compose: dict[str, Any]) -> None:
    """What is scheduled must be sent wherever the rest of the fleet runs."""
    service = compose["services"]["scheduler"]
    context = parse_command(service["command"])

    assert context.info_name == "scheduler"
    check = " ".join(service["healthcheck"]["test"])
    assert f":{context.params['health_port']}/readyz" in check


def test_compose_carries_events_to_kafka_on_request(compose: dict[str, Any]) -> None:
    """The bridge's command goes through the real command line too."""
    bridge = compose["services"]["bridge"]
    context = parse_command(bridge["command"])

    assert context.info_name == "kafka"
    assert context.params["bootstrap"] == "kafka:9092"
    assert f":{context.params['health_port']}/readyz" in " ".join(bridge["healthcheck"]["test"])
    assert bridge["profiles"] == compose["services"]["kafka"]["profiles"] == ["kafka"]


def test_compose_waits_longer_than_the_workers_grace(compose: dict[str, Any]) -> None:
    """Otherwise the engine kills what the worker still lets finish."""
    for name, service in compose_workers(compose):
        settings, _ = worker_of(service["command"])

        assert seconds(service["stop_grace_period"]) > settings.grace_s, name


def test_compose_workers_get_only_known_settings(compose: dict[str, Any]) -> None:
    """An unknown TASKQ_ variable stops the worker at its start."""
    for name, service in compose_workers(compose):
        environment = {key: str(value) for key, value in service["environment"].items()}

        assert app_settings({}, environment).results == environment["TASKQ_RESULTS"], name
        worker_settings({}, environ=environment)


# --- Dockerfile


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    """The linter knows traps of the format that the checks below do not."""
    tool = shutil.which("hadolint")
    if tool is None:
        pytest.skip("hadolint is not installed")

    done = subprocess.run([tool, str(DOCKERFILE)], capture_output=True, text=True)

    assert done.returncode == 0, done.stdout


def dockerfile_steps() -> list[tuple[str, str]]:
    text = DOCKERFILE.read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines]


def test_the_image_stops_warm_and_runs_as_nobody() -> None:
    """As root, or behind a shell that swallows TERM, every stop would be an accident."""
    steps = dockerfile_steps()
    final = steps[max(i for i, (word, _) in enumerate(steps) if word == "FROM") :]
    last = dict(final)

    assert last["USER"] == "10001:10001"
    assert last["STOPSIGNAL"] == "SIGTERM"
    assert last["ENTRYPOINT"] == '["taskq"]', "a shell form would not pass signals on"
    assert last["FROM"].startswith("python:3.13-slim")


def test_the_image_copies_what_exists_and_compiles_it() -> None:
    """Without compiled bytecode every start in a read-only container compiles everything again."""
    copied = [
        source
        for word, rest in dockerfile_steps()
        if word == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    ]
    commands = " ".join(rest for word, rest in dockerfile_steps() if word == "RUN")
    ignored = (ROOT / "workers" / "Dockerfile.dockerignore").read_text().splitlines()

    for source in copied:
        assert (ROOT / source).exists(), source
        assert "!" + source.removeprefix("./") in ignored, f"{source} is not in the build context"
    assert "--compile " in commands
    assert "compileall" in commands
