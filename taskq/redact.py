"""Arguments and headers for people's eyes: what looks like a secret is shown as `***`."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

HIDDEN: Final = "***"
MAX_DEPTH: Final = 100


class Redactor:
    """Hides values by the names they go by: keyword arguments, keys of maps, parameters.

    Attributes:
        names: A value is hidden when its name holds one of these, in whatever case; `-` counts as
            `_`.
        depth: How deep values are looked through; what lies deeper is hidden.
    """

    def __init__(self, names: Iterable[str], depth: int = MAX_DEPTH) -> None:
        self.names = tuple(_folded(name) for name in names if name)
        self.depth = depth

    def hides(self, name: Any) -> bool:
        """Return whether the value of a name is hidden."""
        folded = _folded(str(name))
        return any(part in folded for part in self.names)

    def value(self, value: Any, depth: int = 0) -> Any:
        """Return a value with what is secret in it hidden.

        Args:
            value: Whatever a task got.
            depth: How deep it lies in the value that is looked through.
        """
        if depth > self.depth:
            return HIDDEN
        if isinstance(value, Mapping):
            return {
                key: HIDDEN if self.hides(key) else self.value(item, depth + 1)
                for key, item in value.items()
            }
        if isinstance(value, list | tuple):
            items = [self.value(item, depth + 1) for item in value]
            return tuple(items) if isinstance(value, tuple) else items
        return value

    def arguments(self, args: Sequence[Any], parameters: Sequence[str] = ()) -> list[Any]:
        """Return positional arguments with what is secret in them hidden.

        Args:
            args: The arguments.
            parameters: Names of the function's positional parameters, where they are known.
        """
        shown = []
        for index, item in enumerate(args):
            name = parameters[index] if index < len(parameters) else ""
            shown.append(HIDDEN if name and self.hides(name) else self.value(item))
        return shown


def _folded(name: str) -> str:
    return name.lower().replace("-", "_")
