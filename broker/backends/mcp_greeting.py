"""The first words on a connection: which era the server speaks, and why it is not worth asking on.

Which refusal tells of an era and which of something else (no connection, 401) is known by the exchange of each request,
not by the error the SDK makes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

import anyio

from broker.backends import sdk
from broker.backends.exchange import EXCHANGE, Exchange
from broker.errors import Rejected

PROBE_S = 10.0

Begin = Callable[[], Callable[[], bool]]


async def shake_hands(session: sdk.Session, within_s: float) -> None:
    """The handshake and nothing else. Raises as `negotiate`."""
    with _watched(within_s) as begin:
        begin()
        await session.shake_hands()


async def negotiate(session: sdk.Session, within_s: float, *, legacy_first: bool) -> None:
    """Agree on a revision. Raises BrokerError when the server could not be asked at all, else what `Session.negotiate`
    raises."""
    with _watched(within_s) as begin:
        await session.negotiate(legacy_first=legacy_first, probe_s=min(PROBE_S, within_s / 2), begin=begin)


@contextmanager
def _watched(within_s: float) -> Generator[Begin]:
    """Has each request begun by what is given; a failure that has nothing to do with eras is raised as what it was."""
    hello = Exchange(0.0)

    def begin() -> Callable[[], bool]:
        nonlocal hello
        hello = asked = Exchange(anyio.current_time() + within_s)
        EXCHANGE.set(asked)
        return lambda: (
            asked.error is not None and (not isinstance(asked.error, Rejected) or asked.status in (401, 403, 429))
        )

    mark = EXCHANGE.set(None)
    try:
        yield begin
    except sdk.MCPError:
        if hello.error is not None and hello.status in (0, 401, 403, 429):
            raise hello.error from None
        raise
    finally:
        EXCHANGE.reset(mark)
