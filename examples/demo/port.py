"""A port for a program that cannot take port 0 and say which one it got."""

from __future__ import annotations

import random
import socket
from contextlib import suppress

# Below those that a system gives to whoever asks for any (from 32768 on Linux, 49152 elsewhere): between its being
# found and its being listened on nobody comes to it by chance.
_PORTS = range(20_000, 30_000)


def free_port() -> int:
    """A TCP port of loopback that nobody listens on now."""
    while True:
        port = random.choice(_PORTS)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
