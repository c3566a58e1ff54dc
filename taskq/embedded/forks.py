"""Objects with locks and connections that a fork must not tear."""

import os
import weakref
from typing import Protocol


class ForkAware(Protocol):
    """What is told of forks; the calls run on the forking thread."""

    def before_fork(self) -> None:
        """Come to rest: hold the locks, so that the child copies no half-done work."""

    def after_fork_in_parent(self) -> None:
        """Go on: release what `before_fork` holds."""

    def after_fork_in_child(self) -> None:
        """Start afresh: new locks, no threads, and never the parent's connections."""


_aware: "weakref.WeakSet[ForkAware]" = weakref.WeakSet()
_resting: list[ForkAware] = []


def tell_of_forks(thing: ForkAware) -> None:
    """Tell an object of every fork of this process, for as long as it lives."""
    _aware.add(thing)


def _before() -> None:
    _resting[:] = list(_aware)
    for thing in _resting:
        thing.before_fork()


def _in_parent() -> None:
    for thing in reversed(_resting):
        thing.after_fork_in_parent()
    _resting.clear()


def _in_child() -> None:
    for thing in _resting:
        thing.after_fork_in_child()
    _resting.clear()


os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
