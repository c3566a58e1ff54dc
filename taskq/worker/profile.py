"""Worker profiles: short Python files of settings for one kind of worker, run by path."""

import runpy
import types
from pathlib import Path
from typing import Any

from taskq.config import WorkerSettings, nearest, setting_names
from taskq.errors import ConfigError


def load_profile(path: str) -> tuple[str, dict[str, Any]]:
    """Run a profile and return its path and settings.

    Names that begin with `_`, and imported modules, are not settings.

    Raises:
        ConfigError: If the file is missing, raises, or sets an unknown name.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"profile {path!r} is not a file")
    try:
        names = runpy.run_path(str(file), run_name="taskq_profile")
    # A profile is user code and may raise anything.
    except (Exception, SystemExit) as error:
        raise ConfigError(f"profile {path!r} failed: {type(error).__name__}: {error}") from error
    known = setting_names(WorkerSettings)
    values = {}
    for name, value in names.items():
        if name.startswith("_") or isinstance(value, types.ModuleType):
            continue
        if name not in known:
            raise ConfigError(f"unknown setting {name!r} in {path}{nearest(name, known)}")
        values[name] = value
    return path, values
