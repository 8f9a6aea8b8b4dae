"""The embedded OAuth 2.1 authorization server, for one machine and small teams. Any OAuth issuer can take its place.

What must not live here: judging tokens (auth does), and what a scope allows (policies).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from time import time
from typing import TYPE_CHECKING, Any

from broker.authserver.safety import undeclared, unsafe
from broker.ports import Clock, Directory
from broker.settings import Settings

if TYPE_CHECKING:
    from starlette.routing import Route

    from broker.authserver.console import ConsoleSignIn

__all__ = ["console_sign_in", "routes", "undeclared", "unsafe"]


class _SystemClock:
    def now_ms(self) -> int:
        return int(time() * 1000)


def routes(
    settings: Settings,
    directory: Directory,
    scopes: Callable[[], Iterable[str]],
    note: Callable[[str, Mapping[str, Any]], Awaitable[None]],
    base_url: Callable[[], str],
    *,
    clock: Clock | None = None,
) -> list[Route]:
    """The authorization server's routes; none when the settings turn it off.

    scopes: every scope a tool of the current catalog asks for. note: append an entry to the records (`Store.note`).
    base_url: where clients reach this broker, which is also the issuer; asked at each request.
    """
    if not settings.auth.embedded.enabled:
        return []
    # Imported here: Authlib, argon2 and Jinja2 take a quarter of a second that other commands need not wait.
    from broker.authserver.endpoints import Endpoints
    from broker.authserver.protocol import House

    house = House(settings, directory, clock or _SystemClock(), scopes, base_url)
    return Endpoints(house, note).routes()


def console_sign_in(
    settings: Settings,
    directory: Directory,
    scopes: Callable[[], Iterable[str]],
    note: Callable[[str, Mapping[str, Any]], Awaitable[None]],
    base_url: Callable[[], str],
    *,
    clock: Clock,
) -> ConsoleSignIn | None:
    """How the console signs people in with the embedded issuer; None when the settings turn that off."""
    if not settings.auth.embedded.enabled:
        return None
    from broker.authserver.console import ConsoleSignIn  # late, as in `routes`
    from broker.authserver.protocol import House

    return ConsoleSignIn(House(settings, directory, clock, scopes, base_url), note)
