"""Results stores by URL; drivers are imported when one is opened."""

from collections.abc import Callable
from importlib import import_module
from typing import Final, cast

from taskq.config import nearest
from taskq.errors import ConfigError
from taskq.results.base import ResultStore

_DRIVERS: Final = {
    "redis": ("taskq.results.redis", "RedisResults"),
    "rediss": ("taskq.results.redis", "RedisResults"),
    "unix": ("taskq.results.redis", "RedisResults"),
    "sqlite": ("taskq.results.sqlite", "SqliteResults"),
    "memory": ("taskq.results.memory", "MemoryResults"),
}


def open_results(url: str, timeout_s: float = 5.0) -> ResultStore:
    """Return the store of a URL; it connects at first use.

    Args:
        url: `redis://`, `rediss://`, `unix://`, `sqlite:///path` or `memory://`.
        timeout_s: How long an operation may take, in seconds.

    Raises:
        ConfigError: If the scheme is unknown, the URL is not usable, or a package is missing.
    """
    scheme = url.partition(":")[0] if ":" in url else ""
    if scheme not in _DRIVERS:
        # The rest of the URL may hold a password.
        raise ConfigError(
            f"results URL with unknown scheme {scheme!r}{nearest(scheme, _DRIVERS)}; "
            f"known: {', '.join(f'{name}://' for name in _DRIVERS)}"
        )
    module, name = _DRIVERS[scheme]
    try:
        driver = cast(Callable[[str, float], ResultStore], getattr(import_module(module), name))
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package == "taskq":
            raise
        raise ConfigError(
            f"results URL {scheme}:// needs the package {package}: pip install {package}"
        ) from error
    return driver(url, timeout_s)
