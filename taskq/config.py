"""Settings of an app and of a worker: names, types, defaults, and where they come from.

Precedence, strongest first: command-line option, `TASKQ_*` environment, worker profile (worker
settings only), `taskq.toml` or `[tool.taskq]` in pyproject.toml, constructor argument, default.
`TASKQ_CONFIG` names another file than those of the working directory. A secret may be given as
`TASKQ_<NAME>_FILE`, a path whose content is the value. Unknown names are errors that suggest the
nearest known one.
"""

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, get_args, get_origin, get_type_hints

from taskq.errors import ConfigError

EMBEDDED_URL: Final = "sqlite:///taskq.db"
DEFAULT_QUEUE: Final = "default"
REDACTED_NAMES: Final = (
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "api_key",
    "apikey",
    "authorization",
    "credential",
    "private_key",
    "cookie",
)
_NOT_SETTINGS: Final = frozenset({"TASKQ_APP", "TASKQ_CONFIG", "TASKQ_FAILPOINT"})
_OFF: Final = frozenset({"", "off", "none", "disabled"})


def _setting(default: Any, help_text: str, minimum: float | None = None) -> Any:
    return field(default=default, metadata={"help": help_text, "min": minimum})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What an app needs to know; see each field's help in `docs/configuration.md`."""

    broker: str | None = _setting(None, "broker URL; `;` separates a failover list")
    results: str | None = _setting(None, "results URL; `off` for none")
    default_queue: str = _setting(DEFAULT_QUEUE, "queue of tasks that name none")
    prefix: str = _setting("", "put before every queue and exchange name on the broker")
    declare: Literal["create", "passive", "never"] = _setting(
        "create", "whether broker objects are created, only checked, or not touched"
    )
    queue_type: Literal["quorum", "classic"] = _setting("quorum", "type of new RabbitMQ queues")
    serializer: Literal["msgpack", "json"] = _setting("msgpack", "how arguments are written")
    publish_timeout_s: float = _setting(5.0, "a send is confirmed or raises within this", 0.01)
    spool: str | None = _setting(None, "file that keeps what is sent while the broker is away")
    results_timeout_s: float = _setting(5.0, "a call to the results store ends within this", 0.01)
    get_timeout_s: float = _setting(3600.0, "how long `get()` waits when no timeout is given", 0.01)
    result_ttl_s: int = _setting(86400, "how long results are kept", 1)
    failure_ttl_s: int = _setting(7 * 86400, "how long failures are kept", 1)
    dead_ttl_s: int = _setting(14 * 86400, "how long dead letters are kept", 60)
    lease_s: float = _setting(
        30.0, "how long a silent worker keeps messages (embedded broker) and slots", 0.5
    )
    max_retries: int = _setting(3, "retries of tasks that set none; 0 turns them off", 0)
    priority_aging: int = _setting(
        0, "one start in so many goes to a lower priority; 0 for strict order", 0
    )
    unknown_max_age_s: float = _setting(600.0, "how long tasks that no worker knows are parked", 0)
    events: Literal["on", "durable", "off"] = _setting(
        "on", "lifecycle events; `durable` confirms them before a task is acknowledged"
    )
    event_arguments: bool = _setting(False, "whether `task.sent` shows arguments, redacted")
    event_results: bool = _setting(False, "whether `task.succeeded` shows the result, redacted")
    event_tracebacks: bool = _setting(False, "whether `task.failed` shows the traceback's end")
    redact: tuple[str, ...] = _setting(
        REDACTED_NAMES, "arguments and headers whose name holds one of these are shown as ***"
    )
    state_dir: str = _setting("", "where replays keep their journals; the user's state directory")
    imports: tuple[str, ...] = _setting((), "modules that a worker imports besides the app's")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """What a worker process needs to know besides the app's settings."""

    app: str | None = _setting(None, "where the app is, as `package.module:name`")
    queues: tuple[str, ...] = _setting((), "queues to consume, in order of preference")
    concurrency: int = _setting(0, "tasks that run at once; 0 for one per core", 0)
    pool: Literal["process", "thread", "asyncio", "solo"] = _setting("process", "how tasks run")
    executors: int = _setting(1, "executor processes of the thread and asyncio pools", 1)
    prefetch: int = _setting(0, "messages held at most; 0 finds it by itself", 0)
    grace_s: float = _setting(25.0, "how long running tasks may finish at a warm stop", 0)
    cancel_grace_s: float = _setting(5.0, "how long a cancelled task may take to end itself", 0)
    max_tasks_per_child: int = _setting(0, "replace an executor after so many tasks; 0 never", 0)
    max_memory_per_child_mb: int = _setting(0, "replace an executor above this; 0 never", 0)
    burst: bool = _setting(False, "stop when the queues are empty")
    name: str = _setting("", "name of this worker; its host and pid by default")
    log_level: Literal["debug", "info", "warning", "error"] = _setting("info", "what is logged")
    log_format: Literal["text", "json"] = _setting("text", "how it is logged")
    with_scheduler: bool = _setting(False, "run a scheduler beside the worker")
    watchdog_s: float = _setting(
        30.0, "silence of the broker, while work waits, before consuming anew; 0 never", 0
    )
    health_port: int = _setting(0, "port for /livez, /readyz and /metrics; 0 for none", 0)


AnySettings = TypeVar("AnySettings", Settings, WorkerSettings)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for a misspelt name, or an empty text."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def setting_names(kind: type[Any]) -> list[str]:
    """Return the names of a settings class, in order."""
    return [item.name for item in fields(kind)]


def build(
    kind: type[AnySettings],
    layers: Iterable[tuple[str, Mapping[str, Any]]],
) -> AnySettings:
    """Merge layers of settings, weakest first, and check every value.

    Args:
        kind: `Settings` or `WorkerSettings`.
        layers: Pairs (where from, for messages; values by name). A None value leaves the setting
            to the weaker layers.

    Raises:
        ConfigError: For an unknown name, a wrong type, or a value out of range.
    """
    known = setting_names(kind)
    hints = get_type_hints(kind)
    merged: dict[str, Any] = {}
    for origin, values in layers:
        for name, value in values.items():
            if name not in known:
                raise ConfigError(f"unknown setting {name!r} in {origin}{nearest(name, known)}")
            if value is not None:
                merged[name] = _convert(name, hints[name], value, origin)
    for item in fields(kind):
        minimum = item.metadata.get("min")
        value = merged.get(item.name)
        if minimum is not None and value is not None and not minimum <= value < 2**53:
            raise ConfigError(f"{item.name} is {value!r}; it must be at least {minimum:g}")
    return kind(**merged)


def _convert(name: str, hint: Any, value: Any, origin: str) -> Any:
    """Return `value` as the setting's type; texts from the environment are parsed."""
    choices = get_args(hint) if get_origin(hint) is Literal else ()
    if choices:
        text = str(value).lower()
        if text not in choices:
            raise ConfigError(
                f"{name} is {value!r} in {origin}; use one of {', '.join(map(repr, choices))}"
                + nearest(text, choices)
            )
        return text
    if get_origin(hint) is tuple:
        parts = value.split(",") if isinstance(value, str) else value
        if isinstance(parts, list | tuple) and all(isinstance(part, str) for part in parts):
            return tuple(part.strip() for part in parts if part.strip())
    elif hint is bool:
        return _boolean(name, value, origin)
    elif hint in (int, float):
        return _number(name, hint, value, origin)
    elif isinstance(value, str):
        return value
    raise ConfigError(f"{name} is {value!r} in {origin}, which is not a value it can take")


def _boolean(name: str, value: Any, origin: str) -> bool:
    text = str(value).lower()
    if text in ("1", "true", "yes", "on"):
        return True
    if text in ("0", "false", "no", "off", ""):
        return False
    raise ConfigError(f"{name} is {value!r} in {origin}; use true or false")


def _number(name: str, hint: type, value: Any, origin: str) -> int | float:
    if isinstance(value, str):
        value = value.strip()
        # The worker's own spelling of "find it by itself".
        if name == "prefetch" and value.lower() == "auto":
            return 0
    try:
        number: int | float = float(value) if hint is float else int(value)
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    inexact = hint is int and isinstance(value, float) and value != number
    if isinstance(value, bool) or number != number or inexact:
        raise ConfigError(f"{name} is {value!r} in {origin}; it must be a number")
    return number


def read_environment(kind: type[Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings of one class that `TASKQ_*` variables give.

    Raises:
        ConfigError: For an unknown `TASKQ_*` name, an unreadable `*_FILE`, or both forms at once.
    """
    every = {*setting_names(Settings), *setting_names(WorkerSettings)}
    wanted = set(setting_names(kind))
    found: dict[str, Any] = {}
    for variable, value in environ.items():
        if not variable.startswith("TASKQ_") or variable in _NOT_SETTINGS:
            continue
        if variable.startswith("TASKQ_KAFKA_"):
            # Properties of Kafka's client; see `taskq.events.kafka.client`.
            continue
        name = variable[6:].lower()
        if name.endswith("_file") and name[:-5] in every:
            name = name[:-5]
            if f"TASKQ_{name.upper()}" in environ:
                raise ConfigError(f"both TASKQ_{name.upper()} and {variable} are set; use one")
            value = _read_secret(variable, value) if name in wanted else ""
        if name not in every:
            known = [f"TASKQ_{item.upper()}" for item in every]
            raise ConfigError(
                f"unknown setting {variable} in the environment{nearest(variable, known)}"
            )
        if name in wanted:
            found[name] = value
    return found


def _read_secret(variable: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{variable} names {path}, which cannot be read: {error}") from error


def read_content(environ: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
    """Read `taskq.toml`, or `[tool.taskq]` of pyproject.toml, in the working directory.

    Returns:
        Where it was found (empty: nowhere), and all that it says.

    Raises:
        ConfigError: If the file named by TASKQ_CONFIG is missing, or a file is not valid TOML.
    """
    named = environ.get("TASKQ_CONFIG")
    candidates = [Path(named)] if named else [Path("taskq.toml"), Path("pyproject.toml")]
    for path in candidates:
        if not path.is_file():
            if named:
                raise ConfigError(f"TASKQ_CONFIG names {named}, which is not a file")
            continue
        try:
            with path.open("rb") as stream:
                content = tomllib.load(stream)
        except (tomllib.TOMLDecodeError, OSError, UnicodeDecodeError) as error:
            # A broken pyproject.toml is other tools' business unless it is named.
            if path.name == "pyproject.toml" and not named:
                continue
            raise ConfigError(f"{path} cannot be read: {error}") from error
        if path.name == "pyproject.toml":
            content = content.get("tool", {}).get("taskq", {})
        if content:
            return str(path), content
    return "", {}


def read_file(environ: Mapping[str, str]) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Return the settings of the file; see `read_content`.

    Returns:
        Where it was found (empty: nowhere), the app's settings, and those of `[worker]`.

    Raises:
        ConfigError: As `read_content`, or if `[worker]` is not a table.
    """
    origin, content = read_content(environ)
    worker = content.pop("worker", {})
    if not isinstance(worker, dict):
        raise ConfigError(f"[worker] in {origin} is not a table")
    # These have readers of their own.
    for table in ("schedules", "routes"):
        content.pop(table, None)
    return origin, content, worker


def app_settings(
    arguments: Mapping[str, Any], environ: Mapping[str, str] | None = None
) -> Settings:
    """Return the settings of an app: constructor arguments under files under the environment.

    Without any broker, broker and results are the embedded file `taskq.db` in the working
    directory; with a broker and no results, results are off.

    Raises:
        ConfigError: See `build`.
    """
    env = os.environ if environ is None else environ
    origin, from_file, _ = read_file(env)
    merged = build(
        Settings,
        [
            ("TaskQ(...)", arguments),
            (origin, from_file),
            ("the environment", read_environment(Settings, env)),
        ],
    )
    values = {name: getattr(merged, name) for name in setting_names(Settings)}
    if merged.broker is None:
        values["broker"] = EMBEDDED_URL
        if merged.results is None:
            values["results"] = EMBEDDED_URL
    if values["results"] is not None and values["results"].lower() in _OFF:
        values["results"] = None
    return Settings(**values)


def worker_settings(
    options: Mapping[str, Any],
    profile: tuple[str, Mapping[str, Any]] = ("", {}),
    environ: Mapping[str, str] | None = None,
) -> WorkerSettings:
    """Return the settings of a worker: options over environment over profile over file.

    Args:
        options: Command-line options; None where not given.
        profile: The profile's path and its values.
        environ: The environment; the process's own by default.

    Raises:
        ConfigError: See `build`.
    """
    env = os.environ if environ is None else environ
    origin, _, from_file = read_file(env)
    return build(
        WorkerSettings,
        [
            (f"[worker] of {origin}", from_file),
            profile,
            ("the environment", read_environment(WorkerSettings, env)),
            ("the command line", options),
        ],
    )


def describe(kind: type[Any]) -> list[tuple[str, str, str, str]]:
    """Return (name, type, default, help) of each setting, for the documentation."""
    hints = get_type_hints(kind)
    rows = []
    for item in fields(kind):
        hint = hints[item.name]
        choices = get_args(hint) if get_origin(hint) is Literal else ()
        shown = " or ".join(map(repr, choices)) if choices else getattr(hint, "__name__", str(hint))
        default = "" if item.default is MISSING else repr(item.default)
        rows.append((item.name, shown, default, str(item.metadata["help"])))
    return rows
