"""Where an embedded database lives: `sqlite:///file.db` and `memory://name`."""

import os
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, urlsplit

from taskq.errors import ConfigError

_FORMS: Final = (
    "use sqlite:///name.db for a file in the working directory, sqlite:////full/path/name.db for "
    "any other"
)


@dataclass(frozen=True, slots=True)
class Location:
    """One embedded database.

    Attributes:
        path: Absolute path of the file; empty for a database in memory.
        name: Name of the database in memory; empty is a name too.
        url: The URL with an absolute path.
    """

    path: str
    name: str
    url: str


def parse_location(url: str) -> Location:
    """Read an embedded URL; a relative path counts from the working directory of now.

    Args:
        url: `sqlite:///relative.db`, `sqlite:////absolute.db` or `memory://[name]`.

    Raises:
        ConfigError: If it has another scheme, a host, options, or no path.
    """
    scheme, separator, _ = url.partition("://")
    if separator and scheme == "memory":
        return _memory(url)
    if not separator or scheme != "sqlite":
        raise ConfigError(f"{url!r} is no embedded database; {_FORMS}, memory:// for none")
    # urlsplit drops nothing of a path but what follows ? and #, which unquote gives back.
    parts = urlsplit(url)
    if parts.netloc:
        raise ConfigError(f"{url!r} names a host {parts.netloc!r}, a file has none; {_FORMS}")
    if parts.query or parts.fragment:
        raise ConfigError(f"{url!r} has options, an embedded database takes none; write %3F for ?")
    path = unquote(parts.path[1:])
    if not path or path.endswith("/") or "\0" in path:
        raise ConfigError(f"{url!r} names no file; {_FORMS}")
    # The real path: two spellings of one file must be one database in this process.
    absolute = os.path.realpath(path)
    return Location(absolute, "", f"sqlite:///{absolute}")


def _memory(url: str) -> Location:
    name = url.removeprefix("memory://").rstrip("/")
    if any(ch in name for ch in "/?#@"):
        raise ConfigError(f"{url!r} is not usable; use memory:// or memory://name")
    return Location("", name, f"memory://{name}")
