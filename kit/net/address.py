"""The addresses and ports under which this machine is reached."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import closing, suppress

from kit.errors import Command, KitError, WrongUsage

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


def require_port(host: str, port: int, again: Callable[[int], Command]) -> None:
    """Raises KitError where nobody can listen there; `again` is what to type for another port. llama.cpp itself would
    share a port with another program, and Ray complains of something else."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with closing(socket.socket(family)) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            probe.listen(1)
    except OverflowError as error:
        raise WrongUsage(f"PORT={port} is no port.", again(8080)) from error
    except OSError as error:
        other = port + 1 if 1024 <= port < 65535 else 8080
        raise KitError(
            f"nothing can listen on {host}:{port}: {error.strerror or error}.",
            "another port: ",
            again(other),
            "; LISTEN= is an address of this machine, or 0.0.0.0 for all",
        ) from error
