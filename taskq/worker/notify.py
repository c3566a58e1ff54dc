"""Telling systemd how the worker is: the sd_notify datagram protocol (sd_notify(3))."""

import contextlib
import os
import socket


def notify(state: str) -> None:
    """Send a state such as `READY=1`; does nothing outside of systemd."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    # A supervisor that went away is no reason to stop working.
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock,
    ):
        sock.sendto(state.encode(), address)


def watchdog_interval_s() -> float:
    """Return how often systemd wants to hear `WATCHDOG=1`, in seconds; 0 for never."""
    usec = os.environ.get("WATCHDOG_USEC", "")
    return int(usec) / 2e6 if usec.isdigit() else 0.0
