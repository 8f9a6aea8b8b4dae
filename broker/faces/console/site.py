"""The console over HTTP: who is signed in, that forms are ours, errors as pages, the stream that keeps pages live."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from importlib import import_module
from typing import Any, Protocol
from urllib.parse import quote

import anyio
import structlog
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from broker.errors import BrokerError, Malformed, Overloaded, RecordUnavailable, Unauthenticated
from broker.faces import bodies
from broker.faces.api.errors import STATUS
from broker.faces.console import PAGES, rendering
from broker.faces.console.sessions import Session, Sessions
from broker.faces.console.visit import Verified, Visit
from broker.faces.office import Office
from broker.model.invocation import InvocationQuery
from broker.model.principal import Principal
from broker.model.signin import Attempt, Grant
from broker.pipeline.desk import name_of

DOOR = "api"
STREAMS = 256
BEAT_S = 15.0
ANSWER = ("code", "state", "iss", "error", "error_description", "error_uri", "scope", "session_state")
CALM_S = 0.5  # between two looks, however fast records change

log = structlog.get_logger("broker.console")

Handler = Callable[[Request], Awaitable[Response]]
Page = Callable[[Visit], Awaitable[Response]]


class Issuer(Protocol):
    """Where people sign in. host: of the request, so that browser and issuer mean the same spelling of loopback."""

    async def begin(self, host: str, attempt: Attempt) -> str:
        """Where to send the browser."""
        ...

    async def finish(self, host: str, attempt: Attempt, answer: Mapping[str, str]) -> Grant:
        """What is granted for what it came back with (`code`, `iss`). Raises Unauthenticated."""
        ...

    async def renew(self, grant: Grant, /) -> Grant | None:
        """A new grant for one whose access token has expired; None when the person has to sign in again."""
        ...

    async def end(self, request: Request, response: Response, grant: Grant, /, *, everywhere: bool) -> str:
        """End the grant, and this browser's session with the issuer (everywhere: those of all browsers).

        Returns where the browser itself can end what only it can end, or ""."""
        ...


class Console:
    """verify: walks through the whole record. base_url: where browsers find us, known when we listen."""

    def __init__(
        self, office: Office, issuer: Issuer, *, verify: Callable[[], Awaitable[Verified]], base_url: str
    ) -> None:
        self._office = office
        self._issuer = issuer
        self._verify = verify
        self._sessions = Sessions(office.clock, base_url)
        self._renewing = anyio.Lock()
        self._streams = 0
        self._closing = False

    def routes(self) -> list[Route]:
        shown = [Route(path, self._page(_load(what)), methods=["GET"]) for path, (_, what) in PAGES.items()]
        hold, call = "broker.faces.console.pages.hold", "broker.faces.console.pages.calls"
        grants = "broker.faces.console.pages.grants"
        return [
            *shown,
            Route("/console/record", self._page(_load(PAGES["/console/record"][1])), methods=["POST"]),
            Route("/console/holds/{id}", self._page(_load(f"{hold}:show")), methods=["GET"]),
            Route("/console/holds/{id}/grant", self._page(_load(f"{grants}:propose")), methods=["POST"]),
            Route("/console/grants", self._page(_load(f"{grants}:draft")), methods=["POST"]),
            Route("/console/grants/{id}/{decision:str}", self._page(_load(f"{grants}:decide")), methods=["POST"]),
            Route("/console/holds/{id}/{decision:str}", self._decision(_load(f"{hold}:decide")), methods=["POST"]),
            Route("/console/calls.json", self._page(_load(f"{call}:as_json")), methods=["GET"]),
            Route("/console/calls.csv", self._page(_load(f"{call}:as_csv")), methods=["GET"]),
            Route("/console/calls/{id}", self._page(_load(f"{call}:one")), methods=["GET"]),
            Route("/console/events", self._page(self._events), methods=["GET"]),
            Route("/console/sign-in", self._told(self._sign_in), methods=["GET"]),
            Route("/console/callback", self._told(self._callback), methods=["GET"]),
            Route("/console/sign-out", self._page(self._sign_out), methods=["POST"]),
            Route("/console/me", self._page(self._me), methods=["GET"]),
            Route("/console/signed-out", self._told(self._signed_out), methods=["GET"]),
            Route("/console/static/{name}", self._static, methods=["GET"]),
            Route("/console/{rest:path}", self._told(self._nothing)),
        ]

    def close(self) -> None:
        """A shutdown begins: streams end."""
        self._closing = True

    # ------------------------------------------------------------------------------------------------------ every page

    def _page(self, show: Page) -> Handler:
        async def answered(request: Request) -> Response:
            session = self._sessions.of(request)
            if session is None:
                return self._to_sign_in(request)
            try:
                session, who = await self._known(session)
            except Unauthenticated:
                self._sessions.close(session)
                return self._to_sign_in(request)
            form = await self._form(request, session) if request.method == "POST" else {}
            return await show(Visit(request, who, session, self._office, self._verify, form))

        return self._told(answered)

    async def _known(self, session: Session) -> tuple[Session, Principal]:
        """Who it is now, with a renewed grant where one was due. Raises Unauthenticated."""
        try:
            return session, await self._office.authenticate(session.grant.access_token, DOOR)
        except Unauthenticated as refusal:
            if refusal.facts.get("reason") != "expired":
                raise
            async with self._renewing:  # a refresh token is spent once; who comes meanwhile finds it renewed
                current = self._sessions.now(session)
                if current is None:
                    raise
                if current.grant is session.grant:
                    renewed = await self._issuer.renew(session.grant)
                    if renewed is None:
                        raise
                    current = self._sessions.renew(session, renewed)
            return current, await self._office.authenticate(current.grant.access_token, DOOR)

    def _decision(self, decide: Page) -> Handler:
        page = self._page(decide)

        async def answered(request: Request) -> Response:
            known = request.path_params["decision"] in ("approve", "deny", "edit")
            return await page(request) if known else await self._told(self._nothing)(request)

        return answered

    async def _form(self, request: Request, session: Session) -> dict[str, str]:
        form = await bodies.form(request, chars=bodies.BODY_BYTES)
        if not self._sessions.is_ours(request, session, form.get("csrf", "")):
            raise Malformed("This form did not come from a page of this console, or is out of date.")
        return form

    def _told(self, handler: Handler) -> Handler:
        """Errors as pages."""

        async def answered(request: Request) -> Response:
            try:
                return await handler(request)
            except BrokerError as error:
                return _message(_heading(error), error.sentence, STATUS[error.code])
            except Exception:  # a mistake of ours is told as one, without its inside
                log.exception("a page of the console failed", path=request.url.path)
                return _message("The broker failed", "Nothing was decided. Tell the operator when it was.", 500)

        return answered

    async def _nothing(self, _: Request) -> Response:
        return _message("There is nothing here", "Go back to the inbox.", 404)

    async def _static(self, request: Request) -> Response:
        kind = rendering.STATIC.get(request.path_params["name"])
        if kind is None:
            return await self._nothing(request)
        headers = {**rendering.HEADERS, "Cache-Control": "max-age=3600"}
        return Response(rendering.static(request.path_params["name"]), 200, {**headers, "Content-Type": kind})

    # --------------------------------------------------------------------------------------------------------- sign-in

    def _to_sign_in(self, request: Request) -> Response:
        if request.method != "GET" or request.headers.get("hx-request") or request.url.path == "/console/events":
            return _message("You are signed out", "Sign in again; nothing was decided.", 401)
        path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        return RedirectResponse(f"/console/sign-in?then={quote(path, safe='')}", 303, dict(rendering.HEADERS))

    async def _sign_in(self, request: Request) -> Response:
        then = bodies.query(request, ("then",)).get("then", "")
        cookie, attempt = self._sessions.begin(request, then if _is_own_path(then) else "/console")
        location = await self._issuer.begin(request.headers.get("host", ""), attempt)
        response = RedirectResponse(location, 303, dict(rendering.HEADERS))
        return self._sessions.give(response, cookie)

    async def _callback(self, request: Request) -> Response:
        given = bodies.query(request, ANSWER)
        pending = self._sessions.returned(request, given.get("state", ""))
        if pending is None:
            raise Malformed("This sign-in was not begun in this browser, or too long ago.", next_step="Begin again.")
        if "code" not in given:
            raise Unauthenticated("You were not signed in.", next_step="Begin again.")
        grant = await self._issuer.finish(request.headers.get("host", ""), pending.attempt, given)
        who = await self._office.authenticate(grant.access_token, DOOR)
        await self._office.store.note("console_sign_in", {"user": name_of(who)})
        response = RedirectResponse(pending.then, 303, dict(rendering.HEADERS))
        return self._sessions.give(response, self._sessions.open(grant, who))

    async def _sign_out(self, visit: Visit) -> Response:
        everywhere = visit.form.get("everywhere", "") != ""
        response = RedirectResponse("/console/signed-out", 303, dict(rendering.HEADERS))
        ending = self._sessions.all_of(visit.who) if everywhere else [visit.session]
        for session in ending:
            self._sessions.close(session)
        further = ""
        for session in ending:
            further = await self._issuer.end(visit.request, response, session.grant, everywhere=everywhere) or further
        await self._office.store.note("console_sign_out", {"user": name_of(visit.who), "sessions": len(ending)})
        if further:  # only the browser can end its own session there, and a form of ours may lead nowhere else
            response = rendering.page("signed_out.html", further=further)
        return self._sessions.forget(response)

    async def _signed_out(self, _: Request) -> Response:
        return rendering.page("signed_out.html", further="")

    async def _me(self, visit: Visit) -> Response:
        """Who one is here, and in how many browsers."""
        return await visit.page("me.html", sessions=len(self._sessions.all_of(visit.who)))

    # ---------------------------------------------------------------------------------------------------------- stream

    async def _events(self, visit: Visit) -> Response:
        """A line for each change of what waits: how many there are. The pages then ask for what they show."""
        if self._streams >= STREAMS:
            raise Overloaded("Too many pages are open.")
        return StreamingResponse(
            self._changes(visit.session, visit.who),
            media_type="text/event-stream",
            headers={**rendering.HEADERS, "X-Accel-Buffering": "no"},
        )

    async def _changes(self, session: Session, who: Principal) -> AsyncGenerator[bytes]:
        self._streams += 1
        last: tuple[int, Any] | None = None
        beat_at = 0.0
        try:
            while not self._closing and (current := self._sessions.now(session)) is not None:
                try:
                    session, who = await self._known(current)
                    now = await self._standing(who)
                except Unauthenticated:
                    return
                except (Overloaded, RecordUnavailable):
                    now = last
                if now is not None and now != last:
                    last, beat_at = now, anyio.current_time() + BEAT_S
                    yield f"event: holds\ndata: {now[0]}\n\n".encode()
                elif anyio.current_time() >= beat_at:
                    beat_at = anyio.current_time() + BEAT_S
                    yield b"event: beat\ndata:\n\n"  # an event, so that a page knows when it has stopped
                await anyio.sleep(CALM_S)
                await self._office.store.changed(1.0)
        finally:
            self._streams -= 1

    async def _standing(self, who: Principal) -> tuple[int, Any]:
        """What has to be different for a page to be asked again: how many wait, and what was held and changed last."""
        waiting = await self._office.how_many(who)
        latest = await self._office.held_lately(who, InvocationQuery(limit=20))
        return waiting, tuple((one.call_id, one.state, one.changed_at_ms) for one in latest)


def _load(reference: str) -> Page:
    module, _, name = reference.partition(":")
    return getattr(import_module(module), name)


def _is_own_path(then: str) -> bool:
    """A path of the console and nothing a browser could read as another place."""
    return (then == "/console" or then.startswith(("/console/", "/console?"))) and then.isascii() and "\\" not in then


def _heading(error: BrokerError) -> str:
    return {401: "Not signed in", 403: "Not for you", 404: "There is nothing here", 409: "Decided before"}.get(
        STATUS[error.code], "This does not work"
    )


def _message(heading: str, text: str, status: int) -> Response:
    return rendering.page("message.html", status=status, heading=heading, text=text)
