"""Finding the app that `-A` names."""

import importlib
import importlib.util
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from taskq.app import TaskQ
from taskq.config import nearest
from taskq.errors import ConfigError
from taskq.schedules.book import declaring

_USUAL_NAMES = ("app", "taskq", "make_app", "create_app")


def load_app(place: str, imports: tuple[str, ...] = ()) -> TaskQ:
    """Import the app at `package.module:name`, `package.module`, or `path/to/file.py[:name]`.

    Without a name, `app`, `taskq`, `make_app()` or `create_app()` is taken, or else the module's
    only `TaskQ`. The working directory is put on the import path first.

    Args:
        place: Where the app is.
        imports: Further modules to import, besides those of the app's `imports` setting.

    Raises:
        ConfigError: If it cannot be imported or is no app; `__cause__` is the exception raised by
            the import, and the message names its file and line.
    """
    cwd = os.getcwd()
    if cwd not in sys.path:
        sys.path.insert(0, cwd)
    module_name, _, attribute = place.partition(":")
    if not module_name:
        raise ConfigError(f"-A {place!r} names no module; use package.module:name")
    with declaring():
        module = _import(module_name)
        app = _pick(module, attribute, module_name)
        for name in (*app.settings.imports, *imports):
            _import(name)
    return app


def _import(name: str) -> ModuleType:
    try:
        if name.endswith(".py"):
            return _import_file(Path(name))
        return importlib.import_module(name)
    # The user's module may raise anything while it is imported, SystemExit included.
    except (Exception, SystemExit) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"cannot import {name!r}: {_where(error)}") from error


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigError(f"cannot import {str(path)!r}: there is no such file")
    # Named by its stem, so that task names are the same as when the file is run as a script.
    name = path.stem
    sys.path.insert(0, str(path.resolve().parent))
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"cannot import {str(path)!r}: it is no Python source file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _where(error: BaseException) -> str:
    """Return exception, file and line of where the user's code raised."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, SyntaxError) and error.filename:
        return f"{text} ({error.filename}:{error.lineno})"
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "importlib" not in frame.filename and not frame.filename.endswith("taskq/loading.py")
    ]
    return f"{text} ({frames[-1].filename}:{frames[-1].lineno})" if frames else text


def _pick(module: ModuleType, attribute: str, module_name: str) -> TaskQ:
    if attribute:
        found: Any = module
        for part in attribute.split("."):
            found = getattr(found, part, None)
        if found is None:
            raise ConfigError(
                f"module {module_name!r} has no {attribute!r}{nearest(attribute, vars(module))}"
            )
        return _as_app(found, f"{module_name}:{attribute}")
    for name in _USUAL_NAMES:
        if hasattr(module, name):
            return _as_app(getattr(module, name), f"{module_name}:{name}")
    apps = {name: value for name, value in vars(module).items() if isinstance(value, TaskQ)}
    if len(apps) == 1:
        return next(iter(apps.values()))
    names = ", ".join(sorted(apps)) or "none"
    raise ConfigError(
        f"module {module_name!r} does not say which app: found {names}; use {module_name}:name"
    )


def _as_app(found: Any, place: str) -> TaskQ:
    if not isinstance(found, TaskQ) and callable(found):
        try:
            found = found()
        # A factory is user code and may raise anything.
        except Exception as error:
            raise ConfigError(f"{place}() failed: {_where(error)}") from error
    if not isinstance(found, TaskQ):
        raise ConfigError(f"{place} is {type(found).__name__}, not a TaskQ app")
    return found
