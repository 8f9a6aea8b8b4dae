"""Who calls. Each way to authenticate is one row of the table; the gatekeeper asks them in turn.

What must not live here: what a caller may do (policies), and how tokens are given out (authserver).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

import anyio
from anyio import to_thread

from broker.data import dataclass
from broker.errors import Unauthenticated
from broker.model.address import DOORS
from broker.model.principal import Principal
from broker.ports import Authenticator, Clock, Directory
from broker.settings import Settings

AUTHENTICATORS: Mapping[str, str] = {
    "jwt": "broker.auth.jwt:AccessTokens",
    "api_key": "broker.auth.api_key:ApiKeys",
    "local": "broker.auth.local:Local",
}
"""name → "module:Name" of a class that is built with a Context and keeps ports.Authenticator, and `aclose`."""

CREDENTIAL_CHARS = 16_384


@dataclass(frozen=True, slots=True)
class Context:
    """What an authenticator gets from the house. base_url: where this broker is, known when it listens."""

    settings: Settings
    directory: Directory
    clock: Clock
    base_url: Callable[[], str]


def authenticators(context: Context) -> tuple[Authenticator, ...]:
    """One of each row, in the order of the table."""
    built: list[Authenticator] = []
    for reference in AUTHENTICATORS.values():
        module, _, name = reference.partition(":")
        kind: Any = getattr(import_module(module), name)
        built.append(kind(context))
    return tuple(built)


class Gatekeeper:
    """The one door for credentials. What no authenticator knows is refused as what one of them found invalid.

    nobody: which agent it is that comes without a credential, for tests (`testing.open`); None: such a caller is
    refused, as at the doors of reviewers always. A credential that is presented is judged either way.
    """

    def __init__(self, build: Callable[[], Sequence[Authenticator]], *, nobody: Principal | None = None) -> None:
        """build: of `authenticators`, asked when the first credential comes; cryptography is no part of a start."""
        self._build = build
        self._authenticators: tuple[Authenticator, ...] = ()
        self._building = anyio.Lock()
        self._nobody = nobody
        self.on_refused: Callable[[str, str], None] = lambda _reason, _issuer: None  # a stable word, a known issuer

    async def authenticate(self, credential: str | None, door: str = "agents") -> Principal:
        """Who presents this credential (the token of `Authorization: Bearer`, without the word).

        door: of `address.DOORS`; a token that names other endpoints of this broker as its audience is not for this one.
        Raises Unauthenticated (facts: reason, a stable word; "missing" without a credential); RecordUnavailable when
        the directory cannot be read.
        """
        try:
            return await self._judge(credential, door)
        except Unauthenticated as refusal:
            self.on_refused(str(refusal.facts.get("reason", "")), str(refusal.facts.pop("issuer", "")))
            raise

    async def _judge(self, credential: str | None, door: str) -> Principal:
        if credential is None and self._nobody is not None and door == "agents":
            return self._nobody  # an agent, and never a reviewer: decisions go through other doors
        if not credential:
            raise Unauthenticated(
                "This broker wants to know who calls, and no credential was sent.",
                next_step="Send an access token or an API key as Authorization: Bearer.",
                reason="missing",
            )
        if len(credential) <= CREDENTIAL_CHARS and credential.isascii():
            for authenticator in self._authenticators or await self._built():
                principal = await authenticator.authenticate(credential)
                if principal is not None:
                    if principal.endpoints and not principal.endpoints & DOORS[door]:
                        break
                    return principal
        raise Unauthenticated(
            "The credential is not valid here.",
            next_step="Get a new access token and try again.",
            reason="unknown",
        )

    def remembered(self, mark: bytes) -> Principal | None:
        """Which agent presented the credential of this fingerprint (b"": none at all) a moment ago, as far as that can
        be said without asking anybody; None: `authenticate` knows."""
        if not mark:
            return self._nobody
        for authenticator in self._authenticators:
            principal = authenticator.remembered(mark)
            if principal is not None:
                known_here = not principal.endpoints or principal.endpoints & DOORS["agents"]
                return principal if known_here else None
        return None

    async def recheck(self, principal: Principal, since_ms: int | None = None) -> None:
        """Whether a principal of before may still act, for calls that run long after they were authenticated: at
        since_ms, where that is known.

        Raises Unauthenticated or InsufficientScope when not; RecordUnavailable.
        """
        for authenticator in self._authenticators or await self._built():
            if await authenticator.recheck(principal, since_ms):
                return
        raise Unauthenticated("Nobody here vouches for this caller any more.", reason="revoked")

    async def _built(self) -> tuple[Authenticator, ...]:
        async with self._building:
            if not self._authenticators:
                self._authenticators = tuple(await to_thread.run_sync(self._build))
        return self._authenticators

    async def aclose(self) -> None:
        for authenticator in self._authenticators:
            close = getattr(authenticator, "aclose", None)
            if close is not None:
                await close()
