"""The addresses under which other machines reach this one."""

from __future__ import annotations

import socket
from contextlib import suppress

# The first is nobody's (RFC 5737): a route to it is the default route. The others are what a room's router without one,
# or a bare switch, gives. Nothing is sent to any of them.
PLACES = ["192.0.2.1", *(f"192.168.{net}.1" for net in (0, 1, 2, 8, 10, 50, 88, 100, 178)), "10.0.0.1", "172.16.0.1"]
PLACES.append("169.254.1.1")


def of_this_machine() -> str | None:
    """The address that this machine has in its network; None for one that has no network."""
    for place in PLACES:
        with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((place, 9))
            address = str(probe.getsockname()[0])
            if not address.startswith("127."):
                return address
    return None
