"""What every test shares: the event loop's name, a free port.

Nothing of the broker is imported here, so that a test of one floor starts as fast as that floor.
"""

from __future__ import annotations

import socket

import pytest


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def free_port() -> int:
    """A TCP port of loopback that nobody listens on now. For programs that cannot take port 0."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]
