"""Forks of the test's own process."""

import os
import traceback
import warnings
from collections.abc import Callable


def in_child(work: Callable[[], object]) -> None:
    """Run `work` in a fork of this process; fail with its traceback when it raises."""
    out, into = os.pipe()
    with warnings.catch_warnings():
        # Later Pythons warn of every fork beside threads; that it works is what is tested.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            os.write(into, traceback.format_exc().encode()[-4000:])
        finally:
            os._exit(0)
    os.close(into)
    with os.fdopen(out, "rb") as reader:
        told = reader.read().decode()
    os.waitpid(pid, 0)
    assert not told, told
