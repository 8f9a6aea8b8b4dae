"""What every test shares: the event loop's name, a deadline for each test, a free port.

Nothing of the broker is imported here, so that a test of one floor starts as fast as that floor.
"""

from __future__ import annotations

import faulthandler
import socket
from collections.abc import Generator

import pytest

TEST_DEADLINE_S = 120  # the longest story is the demo; a test that takes longer hangs


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def deadline() -> Generator[None]:
    """A test that hangs ends the run with the stack of every thread, instead of hanging the run."""
    faulthandler.dump_traceback_later(TEST_DEADLINE_S, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def free_port() -> int:
    """A TCP port of loopback that nobody listens on now. For programs that cannot take port 0."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]
