"""A broker on another machine, asked through its REST API: the same questions as to the store, with the same answers.

Commands read `source.store` and do not know which it is; what one may not see at a remote broker does not exist there,
as the API says. What must not live here: how one signs in (sign_in), what commands print.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import fields, replace
from time import time
from typing import Any, cast
from urllib.parse import quote

import anyio
import anyio.to_thread
import httpx2
import orjson

from broker.data import dataclass
from broker.errors import Refusal, Unauthenticated, Unavailable
from broker.faces.cli import logins, sign_in
from broker.faces.cli.logins import Login
from broker.faces.deciding import Counts, OfAsked, OfPerson, OfRule, Stats
from broker.model.grant import Grant, GrantDecision
from broker.model.hold import Approval, Hold, Preview
from broker.model.invocation import Invocation, InvocationQuery
from broker.model.question import By, Group
from broker.model.quota import QuotaState
from broker.ports import Clock, HeldParts

PAGE = 500
ANSWER_S = 30.0
SOON_S = 30  # an access token that ends within is renewed first
LOOK_EVERY_S = 1.0

_FILTERS = ("agent", "user", "tool", "backend", "rule", "code", "since_ms", "until_ms")


class Told(Refusal):
    """What a remote broker answered: its own sentence and code."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        super().__init__(str(document.get("message") or "The broker refused."), code=str(document.get("code", "")))


class Api:
    """The signed-in person's requests. Raises Unauthenticated, Unavailable, or what the broker answered (Told)."""

    def __init__(self, broker: str, http: httpx2.AsyncClient) -> None:
        self._broker = broker
        self._http = http
        self._login: Login | None = None

    async def get(self, path: str, query: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        """None for what does not exist for this person."""
        return await self._ask("GET", path, query=query or {})

    async def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        found = await self._ask("POST", path, body=body)
        if found is None:
            raise Told(
                {"message": f"There is no such thing at {self._broker}, or not for you.", "code": "unknown_hold"}
            )
        return found

    async def _ask(
        self, method: str, path: str, query: Mapping[str, Any] | None = None, body: Mapping[str, Any] | None = None
    ) -> dict[str, Any] | None:
        answer = await self._send(method, path, query, body, await self._token(""))
        if answer.status_code == 401:
            answer = await self._send(method, path, query, body, await self._token(self._spent()))
        if answer.status_code == 404:
            return None
        try:
            found: Any = answer.json()
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise Unavailable(f"{self._broker} did not answer as a broker (HTTP {answer.status_code}).")
        document = cast("dict[str, Any]", found)
        if answer.status_code == 401:
            raise Unauthenticated(str(document.get("message")), next_step=f"Run `broker login {self._broker}`.")
        if answer.status_code >= 400:
            raise Told(document)
        return document

    async def _send(
        self, method: str, path: str, query: Mapping[str, Any] | None, body: Mapping[str, Any] | None, token: str
    ) -> httpx2.Response:
        try:
            return await self._http.request(
                method,
                sign_in.API + path,
                params=dict(query or {}),
                content=None if body is None else orjson.dumps(body),
                headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
            )
        except httpx2.HTTPError as error:
            raise Unavailable(f"{self._broker} does not answer ({type(error).__name__}).") from error

    def _spent(self) -> str:
        return self._login.access_token if self._login else ""

    async def _token(self, refused: str) -> str:
        """An access token that was not refused and does not end soon."""

        def is_good(login: Login) -> bool:
            lasts = not login.expires_at_s or login.expires_at_s > time() + SOON_S
            return login.access_token != refused and lasts

        if self._login is None:
            self._login = logins.at(self._broker)
        if not is_good(self._login):
            renew = sign_in.renew
            self._login = await anyio.to_thread.run_sync(logins.renewed, self._broker, is_good, renew)
        return self._login.access_token


class RemoteStore:
    """The reading verbs of ports.Store that commands use."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def invocation(self, call_id: str) -> Invocation | None:
        found = await self._api.get(f"/invocations/{quote(call_id, safe='')}")
        return None if found is None else invocation_of(found)

    async def invocations(self, query: InvocationQuery) -> list[Invocation]:
        """As ports.Store."""
        path = "/holds" if query.held_only and not _narrowed(query) else "/invocations"
        found: list[Invocation] = []
        while len(found) < query.limit:
            asked = (
                _asked(query) if path == "/invocations" else {"state": ",".join(query.states)} if query.states else {}
            )
            asked |= {name: value for name in ("before", "after") if (value := getattr(query, name))}
            page = await self._api.get(path, {**asked, "limit": min(PAGE, query.limit - len(found))}) or {}
            found += [invocation_of(one) for one in page.get("items", ())]
            if not page.get("next"):
                break
            query = replace(query, **{"after" if query.after else "before": page["next"]})
        return found[::-1] if query.oldest_first and not query.after else found

    async def sums(self, query: InvocationQuery, by: By) -> list[Group]:
        found = await self._api.get("/sums", {**_asked(query), "by": by, "limit": PAGE}) or {}
        return [_made(Group, one) for one in found.get("items", ())]

    async def held_arguments(self, call_id: str) -> bytes | None:
        found = await self._api.get(f"/holds/{quote(call_id, safe='')}")
        still_open = found is not None and found.get("state") in ("held", "approved")
        return orjson.dumps(found["arguments"]) if found is not None and still_open else None

    async def held(self, call_id: str) -> HeldParts:
        """As ports.Store, without the principal."""
        found = await self._api.get(f"/holds/{quote(call_id, safe='')}") or {}
        sketch: Any = found.get("sketch")
        shown = (
            {name: value for name, value in cast("dict[str, Any]", sketch).items() if name != "digest"}
            if sketch
            else None
        )
        return HeldParts(
            arguments=await self.held_arguments(call_id),
            sketch=orjson.dumps(shown) if shown else None,
            previewed=orjson.dumps(found["previewed"]) if found.get("previewed") is not None else None,
            changes=orjson.dumps(found["changes"]) if found.get("changes") else None,
        )

    async def quotas(
        self,
        now_ms: int,  # noqa: ARG002 – the remote broker's clock counts
        *,
        quota: str = "",
        after: str = "",
        limit: int = 1000,
    ) -> list[QuotaState]:
        made: list[QuotaState] = []
        while len(made) < limit:
            asked = {"quota": quota, "after": after, "limit": str(min(PAGE, limit - len(made)))}
            found = await self._api.get("/quotas", {name: value for name, value in asked.items() if value}) or {}
            made += [_made(QuotaState, one) for one in found.get("items", ())]
            after = found.get("next", "")
            if not after:
                break
        return made

    async def changed(self, timeout_s: float) -> bool:
        await anyio.sleep(min(timeout_s, LOOK_EVERY_S))
        return True


def _asked(query: InvocationQuery) -> dict[str, Any]:
    """The filters of the query as the API names them. Raises Told for a comma in a condition."""
    asked = {name: value for name in _FILTERS if (value := getattr(query, name))}
    asked |= {"state": ",".join(query.states)} if query.states else {}
    asked |= {"search": query.words} if query.words else {}
    conditions = [str(condition) for condition in query.where]
    if any("," in condition for condition in conditions):
        raise Told({"message": "A condition with a comma cannot be sent to a remote broker.", "code": "malformed"})
    return asked | ({"where": ",".join(conditions)} if conditions else {})


def _narrowed(query: InvocationQuery) -> bool:
    return bool(query.words or query.where) or any(getattr(query, name) for name in _FILTERS)


def invocation_of(document: Mapping[str, Any]) -> Invocation:
    """The model behind `words.as_document`; fields of a newer broker are left out. Raises Unavailable."""
    hold = document.get("hold")
    made = _made(Invocation, {**document, "quotas": tuple(document.get("quotas") or ())})
    return replace(made, hold=_hold(hold) if hold else None)


def _hold(document: Mapping[str, Any]) -> Hold:
    approvals = tuple(_made(Approval, one) for one in document.get("approvals") or ())
    preview = document.get("preview")
    return replace(_made(Hold, document), approvals=approvals, preview=_made(Preview, preview) if preview else None)


def _made(kind: Any, document: Mapping[str, Any]) -> Any:
    known = {field.name for field in fields(kind)}
    given = {name: _frozen(value) for name, value in document.items() if name in known}
    try:
        return kind(**given)
    except TypeError as error:
        raise Unavailable("The broker answered in a form this version does not know.") from error


def _grant(document: Mapping[str, Any]) -> Grant:
    return replace(_made(Grant, document), approvals=tuple(_made(Approval, one) for one in document["approvals"]))


def _given(body: Mapping[str, Any]) -> dict[str, Any]:
    """Without what was not said."""
    return {name: value for name, value in body.items() if value not in ("", None)}


def _counted(kind: Any, documents: Any) -> Any:
    return tuple(replace(_made(kind, one), counts=_made(Counts, one["counts"])) for one in documents)


def _frozen(value: Any) -> Any:
    return tuple(cast("list[Any]", value)) if isinstance(value, list) else value


@dataclass(frozen=True, slots=True)
class Remote:
    """A source of records like `records.Records`."""

    url: str
    api: Api
    store: RemoteStore
    clock: Clock

    async def grants(self, *, ended: bool) -> list[Grant]:
        found = await self.api.get("/grants", {"ended": "true"} if ended else {}) or {}
        return [_grant(one) for one in found.get("items", ())]

    async def propose_grant(self, call_id: str, bounds: Mapping[str, Any], *, any_user: bool) -> Grant:
        """Raises Told, as `decide`."""
        path = f"/holds/{quote(call_id, safe='')}/grant"
        return _grant(await self.api.post(path, _given({**bounds, "any_user": any_user})))

    async def draft_grant(self, named: Mapping[str, str], bounds: Mapping[str, Any]) -> Grant:
        """Raises Told, as `decide`."""
        return _grant(await self.api.post("/grants", _given({**named, "user": named["user"] or "*", **bounds})))

    async def decide_grant(self, grant_id: str, decision: GrantDecision, reason: str) -> Grant:
        """Raises Told, as `decide`."""
        return _grant(await self.api.post(f"/grants/{quote(grant_id, safe='')}/{decision}", {"reason": reason}))

    async def stats(self, days: int) -> Stats:
        """Raises Told for who may not see it."""
        found = await self.api.get("/stats", {"days": days}) or {}
        counts: Any = found.get("counts")
        return Stats(
            since_ms=found.get("since_ms", 0),
            counts=_made(Counts, counts),
            rules=_counted(OfRule, found.get("rules", ())),
            asked=_counted(OfAsked, found.get("asked", ())),
            persons=tuple(_made(OfPerson, one) for one in found.get("persons", ())),
        )

    async def decide(
        self, call_id: str, *, approve: bool, reason: str, arguments: Mapping[str, Any] | None = None
    ) -> Invocation:
        """Raises Told: not this person, no reason, or somebody was first."""
        verb = "approve" if approve else "deny"
        body: dict[str, Any] = {"reason": reason} if reason else {}
        body |= {} if arguments is None else {"arguments": arguments}
        return invocation_of(await self.api.post(f"/holds/{quote(call_id, safe='')}/{verb}", body))


@asynccontextmanager
async def opened(url: str, clock: Clock) -> AsyncGenerator[Remote]:
    """Raises Unauthenticated when nobody is signed in there."""
    broker = sign_in.base_url(url)
    logins.at(broker)
    async with httpx2.AsyncClient(base_url=broker, timeout=ANSWER_S) as http:
        api = Api(broker, http)
        yield Remote(broker, api, RemoteStore(api), clock)
