"""What every test shares: the event loop's name, a free port.

Nothing of the broker is imported here, so that a test of one floor starts as fast as that floor.
"""

from __future__ import annotations

import pytest

from examples.demo import port


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def free_port() -> int:
    """For programs that cannot take port 0."""
    return port.free_port()
