"""systemd units and Kubernetes manifests parse, fit together, and name only what exists."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from commandline import parse_command, worker_of

from taskq.config import app_settings, worker_settings

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "workers" / "systemd" / "taskq@.service"
SCHEDULER_UNIT = UNIT.with_name("taskq-scheduler.service")
KUBERNETES = sorted((ROOT / "workers" / "kubernetes").glob("*.yaml"))
PROFILES = sorted((ROOT / "workers").glob("*.py"))


@pytest.fixture(autouse=True)
def in_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Profiles are named relative to the root of the application."""
    monkeypatch.chdir(ROOT)


def unit_settings(unit: Path = UNIT) -> dict[str, dict[str, list[str]]]:
    """Read the unit: {section: {key: values in order}}; configparser refuses repeated keys."""
    sections: dict[str, dict[str, list[str]]] = {}
    current: dict[str, list[str]] = {}
    for line in unit.read_text().splitlines():
        line = line.strip()
        if not line or line.startswith(("#", ";")):
            continue
        if line.startswith("["):
            current = sections.setdefault(line.strip("[]"), {})
            continue
        key, separator, value = line.partition("=")
        if not separator:
            raise ValueError(f"{unit.name}: {line!r}")
        current.setdefault(key.strip(), []).append(value.strip())
    return sections


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_the_unit_starts_each_profile_and_waits_for_its_grace(path: Path) -> None:
    """`taskq@general` must be a command line that taskq takes."""
    service = unit_settings()["Service"]
    command = service["ExecStart"][0].replace("%i", path.stem).replace("%H", "host").split()

    settings, _ = worker_of(command[1:])

    assert Path(command[0]).name == "taskq"
    assert float(service["TimeoutStopSec"][0]) > settings.grace_s


def test_the_unit_supervises_the_worker() -> None:
    """Killing the whole group at a stop would end every task in its middle."""
    service = unit_settings()["Service"]

    assert service["Type"] == ["notify"]
    assert service["KillMode"] == ["mixed"]
    assert float(service["WatchdogSec"][0]) > 0
    assert service["EnvironmentFile"]
    assert {"2", "78"} <= set(service["RestartPreventExitStatus"][0].split())


def test_the_unit_of_the_scheduler_is_a_command_line_that_taskq_takes() -> None:
    """It runs on any number of hosts, under the host's name."""
    service = unit_settings(SCHEDULER_UNIT)["Service"]
    command = service["ExecStart"][0].replace("%H", "host").split()

    context = parse_command(command[1:])

    assert context.info_name == "scheduler"
    assert context.params["name"] == "host"
    assert service["Type"] == ["notify"]
    assert float(service["WatchdogSec"][0]) > 1, "it tells of itself once a second"
    assert {"2", "78"} <= set(service["RestartPreventExitStatus"][0].split())


@pytest.mark.parametrize("unit", [UNIT, SCHEDULER_UNIT], ids=lambda unit: unit.stem)
def test_systemd_itself_accepts_the_unit(unit: Path, tmp_path: Path) -> None:
    """An unknown key or a bad value is only a warning in the journal."""
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("systemd-analyze is not installed")
    instance = tmp_path / unit.name.replace("@", "@general")
    instance.write_text(unit.read_text().replace("/srv/taskq/venv/bin/taskq", sys.executable))

    done = subprocess.run([tool, "verify", str(instance)], capture_output=True, text=True)

    found = [line for line in done.stderr.splitlines() if instance.name in line]
    assert not found, done.stderr


# --- Kubernetes


def manifests(kind: str) -> list[dict[str, Any]]:
    documents = [doc for path in KUBERNETES for doc in yaml.safe_load_all(path.read_text())]
    return [doc for doc in documents if doc["kind"] == kind]


DEPLOYMENTS = manifests("Deployment")


def pod(deployment: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = deployment["spec"]["template"]["spec"]
    return spec


def command_of(deployment: dict[str, Any]) -> list[str]:
    args: list[str] = pod(deployment)["containers"][0]["args"]
    return args


WORKERS = [deployment for deployment in DEPLOYMENTS if command_of(deployment)[0] == "worker"]


def test_kubernetes_runs_a_worker_of_each_profile() -> None:
    """The three files differ in few lines, which is where copies go wrong."""
    profiles = {
        Path(str(worker_of(command_of(deployment))[1]["profile"])).stem for deployment in WORKERS
    }

    assert profiles == {path.stem for path in PROFILES}


def test_kubernetes_runs_more_than_one_scheduler() -> None:
    """One alone would be the single point of failure that it need not be."""
    others = [deployment for deployment in DEPLOYMENTS if deployment not in WORKERS]

    assert [parse_command(command_of(other)).info_name for other in others] == ["scheduler"]
    assert others[0]["spec"]["replicas"] > 1


def deployment_name(deployment: dict[str, Any]) -> str:
    return str(deployment["metadata"]["name"])


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=deployment_name)
def test_a_deployment_selects_its_own_pods(deployment: dict[str, Any]) -> None:
    """A selector that matches another deployment's pods fights with it over their number."""
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    selector = deployment["spec"]["selector"]["matchLabels"]

    assert selector.items() <= labels.items()
    assert deployment_name(deployment).endswith(selector["app.kubernetes.io/component"])


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=deployment_name)
def test_probes_ask_where_the_worker_listens(deployment: dict[str, Any]) -> None:
    """A probe on a closed port restarts a healthy worker for ever."""
    container = pod(deployment)["containers"][0]
    options = parse_command(container["args"]).params
    grace_s = worker_of(container["args"])[0].grace_s if deployment in WORKERS else 0
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}

    assert ports[container["livenessProbe"]["httpGet"]["port"]] == options["health_port"]
    assert ports[container["readinessProbe"]["httpGet"]["port"]] == options["health_port"]
    assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert pod(deployment)["terminationGracePeriodSeconds"] > grace_s


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=deployment_name)
def test_a_pod_is_locked_down_and_can_still_work(deployment: dict[str, Any]) -> None:
    """Executors need a writable /tmp for their sockets when the root is read-only."""
    spec = pod(deployment)
    container = spec["containers"][0]
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}

    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == 10001
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert spec["enableServiceLinks"] is False, "a Service named taskq would set TASKQ_PORT"
    assert "/tmp" in mounts
    assert set(mounts.values()) == {volume["name"] for volume in spec["volumes"]}
    assert container["resources"]["requests"].keys() >= {"cpu", "memory"}


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=deployment_name)
def test_pods_read_settings_that_exist(deployment: dict[str, Any], tmp_path: Path) -> None:
    """Each Secret key, ConfigMap and TASKQ_ name must be there, under the very same name."""
    spec, container = pod(deployment), pod(deployment)["containers"][0]
    secrets = {item["metadata"]["name"]: item["stringData"] for item in manifests("Secret")}
    maps = {item["metadata"]["name"]: item["data"] for item in manifests("ConfigMap")}
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    environment = {
        k: v for ref in container["envFrom"] for k, v in maps[ref["configMapRef"]["name"]].items()
    }
    mounted = {
        f"{mount['mountPath']}/{key}": value
        for mount in container["volumeMounts"]
        if "secret" in volumes[mount["name"]]
        for key, value in secrets[volumes[mount["name"]]["secret"]["secretName"]].items()
    }
    for variable in container["env"]:
        copy = tmp_path / variable["name"]
        copy.write_text(mounted[variable["value"]])
        environment[variable["name"]] = str(copy)

    settings = app_settings({}, environment)

    assert str(settings.broker).startswith("amqp://")
    assert str(settings.results).startswith("redis://")
    worker_settings({}, environ=environment)


def test_the_autoscaler_looks_at_a_queue_that_its_target_consumes() -> None:
    """Scaling by another worker's queue would look like a broken autoscaler."""
    (scaled,) = manifests("ScaledObject")
    (target,) = [
        d for d in DEPLOYMENTS if deployment_name(d) == scaled["spec"]["scaleTargetRef"]["name"]
    ]
    (trigger,) = scaled["spec"]["triggers"]
    settings, _ = worker_of(pod(target)["containers"][0]["args"])
    (auth,) = manifests("TriggerAuthentication")
    (reference,) = auth["spec"]["secretTargetRef"]
    (secret,) = [s for s in manifests("Secret") if s["metadata"]["name"] == reference["name"]]

    assert trigger["metadata"]["queueName"] in settings.queues
    assert trigger["authenticationRef"]["name"] == auth["metadata"]["name"]
    assert reference["key"] in secret["stringData"]
    assert scaled["spec"]["minReplicaCount"] >= 1
