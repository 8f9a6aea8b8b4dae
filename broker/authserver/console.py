"""The console as a client of the embedded issuer: it signs people in as any client does, by code and PKCE.

It is the broker itself, so nobody has to be asked whether it may act for him, and the code is redeemed in this process:
a proxy in front need not lead back to us. What must not live here: the console's own session (faces/console).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import urlencode

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import Response

from broker.authserver import own_client
from broker.authserver.browser import Browser
from broker.authserver.protocol import House
from broker.authserver.server import Server
from broker.errors import Unauthenticated
from broker.model.address import as_called, spellings
from broker.model.directory import Client
from broker.model.signin import Attempt, Grant

CLIENT_ID = "broker-console"
CALLBACK = "/console/callback"
RESOURCE = "/api"

Note = Callable[[str, Mapping[str, Any]], Awaitable[None]]


class ConsoleSignIn:
    """Keeps faces.console.site.Issuer."""

    def __init__(self, house: House, note: Note) -> None:
        self._house = house
        self._note = note
        self._server = Server(house)
        self._browser = Browser(house)

    async def begin(self, host: str, attempt: Attempt) -> str:
        """Where to send the browser that called us by this Host header. Raises Conflict when an account has our name;
        RecordUnavailable."""
        await to_thread.run_sync(self._register)
        called = as_called(self._house.base_url(), host)
        asked = {
            "response_type": "code",
            "client_id": CLIENT_ID,
            "redirect_uri": called + CALLBACK,
            "resource": self._house.base_url() + RESOURCE,
            "state": attempt.state,
            "code_challenge": attempt.code_challenge,
            "code_challenge_method": "S256",
        }
        return f"/oauth/authorize?{urlencode(asked)}"

    async def finish(self, host: str, attempt: Attempt, answer: Mapping[str, str]) -> Grant:
        """The grant for this answer. Raises Unauthenticated; RecordUnavailable."""
        base_url = self._house.base_url()
        if answer.get("iss") != base_url:  # RFC 9207: the answer is from whom we asked
            raise Unauthenticated("The sign-in was answered by somebody else.", reason="wrong_issuer")
        form = {
            "grant_type": "authorization_code",
            "client_id": CLIENT_ID,
            "code": answer["code"],
            "redirect_uri": as_called(base_url, host) + CALLBACK,
            "code_verifier": attempt.verifier,
        }
        reply = await to_thread.run_sync(self._server.token, list(form.items()), "")
        for kind, facts in reply.events:
            await self._note(kind, facts)
        token = reply.body.get("access_token")
        if reply.status != 200 or not isinstance(token, str):
            raise Unauthenticated("The sign-in is not valid any more.", reason=str(reply.body.get("error", "")))
        return Grant(token)

    async def renew(self, _: Grant) -> Grant | None:
        """Never: whoever is still signed in with the issuer gets a new grant by going there."""
        return None

    async def end(self, request: Request, response: Response, grant: Grant, *, everywhere: bool) -> str:
        """Sign out here too: the token ends, and this browser's session with the issuer, or every browser's."""
        form = [("client_id", CLIENT_ID), ("token", grant.access_token)]
        reply = await to_thread.run_sync(self._server.revoke, form, "")
        for kind, facts in reply.events:
            await self._note(kind, facts)
        visitor = await self._browser.visitor(request)
        await self._browser.sign_out(visitor, everywhere=everywhere)
        self._browser.forget(response)
        return ""

    def _register(self) -> None:
        """Make sure that the client is as it has to be. Blocks."""
        redirects = tuple(base + CALLBACK for base in spellings(self._house.base_url()))
        wanted = Client(
            CLIENT_ID, name="broker console", grants=("authorization_code",), redirect_uris=redirects, scopes=None
        )
        own_client.ensure(self._house.directory, wanted)
