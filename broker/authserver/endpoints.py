"""The authorization server over HTTP: a thin adapter between Starlette and the grants.

Everything that blocks (directory, signing, argon2) runs in worker threads. What must be recorded is recorded before the
answer leaves; when it cannot be, the answer is 503 and nothing is given out. No secret is logged or shown.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import urlencode, urlsplit

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from broker.authserver import bodies, clients, console, keys, metadata, pages, redirects, tokens
from broker.authserver.accounts import SignIn
from broker.authserver.browser import Browser, Visitor
from broker.authserver.protocol import Asked, House, Parameters, Reply
from broker.authserver.server import Server
from broker.authserver.windows import Tally, Windows
from broker.errors import Conflict, RecordUnavailable
from broker.model.directory import Account

Note = Callable[[str, Mapping[str, Any]], Awaitable[None]]
Handler = Callable[[Request], Awaitable[Response]]

REGISTRATIONS = 60  # in a window of `windows`

_NO_STORE = {"Cache-Control": "no-store", "Pragma": "no-cache"}
_PUBLIC = {"Access-Control-Allow-Origin": "*", "Cache-Control": "no-cache"}


class Endpoints:
    def __init__(self, house: House, note: Note) -> None:
        self._house = house
        self._note = note
        self._server = Server(house)
        self._browser = Browser(house)
        self._sign_in = SignIn(house.directory, behind_proxy=bool(house.settings.public_url))
        self._windows = Windows()
        self._refusals = Tally("token_refused", note)

    def routes(self) -> list[Route]:
        machine = {
            "/oauth/token": self.token,
            "/oauth/revoke": self.revoke,
            "/oauth/register": self.register,
        }
        return [
            Route("/.well-known/oauth-authorization-server", _guarded(self.metadata), methods=["GET"]),
            Route("/.well-known/openid-configuration", _guarded(self.metadata), methods=["GET"]),
            Route("/oauth/jwks", _guarded(self.jwks), methods=["GET"]),
            *(
                Route(path, self._across(_guarded(handler)), methods=["POST", "OPTIONS"])
                for path, handler in machine.items()
            ),
            Route("/oauth/authorize", _guarded(self.ask), methods=["GET"]),
            Route("/oauth/authorize", _guarded(self.decide), methods=["POST"]),
            Route("/oauth/sign-in", _guarded(self.sign_in), methods=["POST"]),
            Route("/oauth/sign-out", _guarded(self.sign_out), methods=["POST"]),
            Route("/oauth/style.css", self.style, methods=["GET"]),
        ]

    # ------------------------------------------------------------------------------------------------------ machines

    async def metadata(self, _: Request) -> Response:
        return JSONResponse(metadata.authorization_server(self._house), headers=_PUBLIC)

    async def jwks(self, _: Request) -> Response:
        await to_thread.run_sync(keys.signing_key, self._house.directory, self._house.clock.now_ms())
        return JSONResponse(await to_thread.run_sync(keys.jwks, self._house.directory), headers=_PUBLIC)

    async def token(self, request: Request) -> Response:
        return await self._answer(request, self._server.token)

    async def revoke(self, request: Request) -> Response:
        return await self._answer(request, self._server.revoke)

    async def _answer(self, request: Request, run: Callable[[Parameters, str], Reply]) -> Response:
        try:
            parameters = await bodies.form(request)
        except bodies.UnreadableError as error:
            return _oauth_error(error.status, "invalid_request", error.description)
        authorization = request.headers.getlist("authorization")
        if len(authorization) > 1:
            return _oauth_error(400, "invalid_request", "The Authorization header is there twice.")
        reply = await to_thread.run_sync(run, parameters, "".join(authorization))
        for kind, facts in reply.events:
            await self._note(kind, facts)
        if reply.status >= 400:
            await self._refusals.add(str(reply.body.get("error")))
        return JSONResponse(dict(reply.body), status_code=reply.status, headers={**reply.headers, **_NO_STORE})

    async def register(self, request: Request) -> Response:
        if not metadata.may_register(self._house):
            return _oauth_error(403, "access_denied", "Clients are registered by the operator: broker client add.")
        if self._windows.wait_s({("register", ""): REGISTRATIONS}):
            return _oauth_error(429, "temporarily_unavailable", "Too many registrations. Try again in a minute.")
        try:
            document = await bodies.json(request)
            answer = await to_thread.run_sync(
                clients.register, self._house.directory, document, self._house.clock.now_ms()
            )
        except bodies.UnreadableError as error:
            return _oauth_error(error.status, "invalid_client_metadata", error.description)
        except clients.RefusedRegistrationError as error:
            return _oauth_error(400, error.error, error.description)
        except Conflict as error:
            return _oauth_error(429, "temporarily_unavailable", error.sentence)
        facts = {key: answer[key] for key in ("client_id", "client_name", "redirect_uris")}
        await self._note("client_registered", facts)
        return JSONResponse(answer, status_code=201, headers=_NO_STORE)

    # -------------------------------------------------------------------------------------------------------- people

    async def ask(self, request: Request) -> Response:
        """GET /oauth/authorize: the sign-in page, or the consent page."""
        query = request.url.query
        asked = await self._asked(query)
        if isinstance(asked, Response):
            return asked
        visitor = await self._browser.visitor(request)
        if visitor.account is None:
            return self._browser.with_cookie(self._sign_in_page(visitor, query), visitor)
        if asked.client.client_id == console.CLIENT_ID:  # the broker itself: nobody else is given anything
            return self._to_client(await to_thread.run_sync(self._server.answer, asked, visitor.account))
        return self._browser.with_cookie(self._consent_page(visitor, visitor.account, asked, query), visitor)

    async def decide(self, request: Request) -> Response:
        """POST /oauth/authorize: the person's answer, for exactly the request that the page showed."""
        fields = await self._form_of_ours(request)
        if isinstance(fields, Response):
            return fields
        visitor, form = fields
        if visitor.account is None:
            return _see_authorize(form.get("request", ""))
        asked = await self._asked(form.get("request", ""))
        if isinstance(asked, Response):
            return asked
        allowed = form.get("decision") == "allow"
        await self._note(
            "consent",
            {
                "client_id": asked.client.client_id,
                "user": visitor.account.name,
                "scopes": self._granted(asked, visitor.account) if allowed else [],
                "redirect_uri": asked.redirect_uri,
                "decision": "allow" if allowed else "deny",
            },
        )
        reply = await to_thread.run_sync(self._server.answer, asked, visitor.account if allowed else None)
        return self._to_client(reply)

    async def sign_in(self, request: Request) -> Response:
        fields = await self._form_of_ours(request)
        if isinstance(fields, Response):
            return fields
        visitor, form = fields
        name, query = form.get("name", ""), form.get("request", "")
        address = request.client.host if request.client else ""
        wait_s = self._sign_in.wait_s(name, address)
        if wait_s:
            page = self._sign_in_page(visitor, query, f"Too many attempts. Try again in {wait_s} seconds.", 429)
            page.headers["Retry-After"] = str(wait_s)
            return page
        account = await self._sign_in.check(name, form.get("password", ""))
        if account is None:
            await self._note("sign_in_refused", {"user": name[:64], "address": address})
            return self._sign_in_page(visitor, query, "The name or the password is not right.", 403)
        self._sign_in.forget(name, address)
        await self._note("sign_in", {"user": account.name, "address": address})
        return self._browser.with_cookie(_see_authorize(query), await self._browser.signed_in(account))

    async def sign_out(self, request: Request) -> Response:
        fields = await self._form_of_ours(request)
        if isinstance(fields, Response):
            return fields
        visitor, form = fields
        await self._browser.sign_out(visitor)
        if visitor.account is not None:
            await self._note("sign_out", {"user": visitor.account.name})
        return self._browser.forget(_see_authorize(form.get("request", "")))

    async def style(self, _: Request) -> Response:
        return Response(pages.style(), media_type="text/css", headers={"Cache-Control": "max-age=3600"})

    # ------------------------------------------------------------------------------------------------------- helpers

    async def _asked(self, query: str) -> Asked | Response:
        """The authorisation request in a query string, or what to answer instead."""
        try:
            parameters = bodies.parameters(query)
        except bodies.UnreadableError as error:
            return pages.message("This request cannot be read", error.description)
        asked = await to_thread.run_sync(self._server.authorisation, parameters)
        return asked if isinstance(asked, Asked) else self._to_client(asked)

    def _to_client(self, reply: Reply) -> Response:
        """Send the browser back, naming ourselves (RFC 9207) whatever the answer is.

        Without a place to go back to that is the client's own, explain here instead.
        """
        if not reply.location:
            return pages.message("This application cannot sign you in here", _explanation(reply))
        mark = "&" if urlsplit(reply.location).query else "?"
        location = f"{reply.location}{mark}{urlencode({'iss': self._house.base_url()})}"
        return Response(status_code=303, headers={"Location": location, **pages.HEADERS})

    def _granted(self, asked: Asked, account: Account) -> list[str]:
        return sorted(tokens.Parties(asked.client, account).granted(asked.scopes, self._house.scopes()))

    def _sign_in_page(self, visitor: Visitor, query: str, problem: str = "", status: int = 200) -> Response:
        return pages.page(
            "sign_in.html", status=status, csrf=visitor.csrf, request=query, problem=problem, client=bool(query)
        )

    def _consent_page(self, visitor: Visitor, account: Account, asked: Asked, query: str) -> Response:
        granted = self._granted(asked, account)
        return pages.page(
            "consent.html",
            form_action=redirects.form_action(asked.redirect_uri),
            csrf=visitor.csrf,
            request=query,
            client=asked.client,
            redirect_uri=asked.redirect_uri,
            granted=granted,
            withheld=sorted(asked.scopes - set(granted)),
            resources=asked.resources,
            account=account,
        )

    async def _form_of_ours(self, request: Request) -> tuple[Visitor, dict[str, str]] | Response:
        try:
            form = dict(await bodies.form(request))
        except bodies.UnreadableError as error:
            return pages.message("This form cannot be read", error.description, error.status)
        visitor = await self._browser.visitor(request)
        if not self._browser.is_ours(request, visitor, form.get("csrf", "")):
            return pages.message("This form is out of date", "Go back to the application and start again.", 403)
        return visitor, form

    def _across(self, handler: Handler) -> Handler:
        """Let the web origins of the settings read the answer: these endpoints use no cookies."""

        async def answered(request: Request) -> Response:
            origin = request.headers.get("origin", "")
            response = Response(status_code=204) if request.method == "OPTIONS" else await handler(request)
            if origin and origin in self._house.settings.allowed_origins:
                response.headers["Access-Control-Allow-Origin"] = origin
                response.headers["Access-Control-Allow-Headers"] = "authorization, content-type, mcp-protocol-version"
                response.headers["Vary"] = "Origin"
            return response

        return answered


def _see_authorize(query: str) -> Response:
    return RedirectResponse(f"/oauth/authorize?{query}", status_code=303, headers=dict(pages.HEADERS))


def _oauth_error(status: int, error: str, description: str) -> Response:
    return JSONResponse({"error": error, "error_description": description}, status_code=status, headers=_NO_STORE)


def _explanation(reply: Reply) -> str:
    if reply.body.get("error") == "invalid_client":
        return (
            "It is not registered here (any more). Remove its stored sign-in for this server and let it register "
            "again, or ask the operator for `broker client add`."
        )
    return f"Its request is not acceptable: {reply.body.get('error_description') or reply.body.get('error')}"


def _guarded(handler: Handler) -> Handler:
    async def answered(request: Request) -> Response:
        try:
            return await handler(request)
        except RecordUnavailable as error:
            return _oauth_error(503, "temporarily_unavailable", error.message)

    return answered
