"""Who is signed in with which browser. The cookie is 256 random bits; everything it means stays on the server.

A session is made at sign-in under a cookie that did not exist before, and holds what the issuer granted: who the person
is and what he may do is asked of the gatekeeper at every request, so what is revoked ends at once. Sessions live in
this process only; after a restart a browser that is still signed in at the issuer gets a new one without typing
anything.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import replace
from typing import TypeVar
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response

from broker.data import dataclass
from broker.model.address import spellings
from broker.model.principal import Principal, person
from broker.model.signin import Attempt, Grant
from broker.ports import Clock

SESSION_MS = 8 * 3_600_000
PENDING_MS = 600_000
MOST = 5_000  # sessions, and sign-ins under way; beyond, the oldest goes
_COOKIE_CHARS = 43

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Session:
    key: str  # the hash of the cookie
    whose: tuple[str, str, str]
    grant: Grant
    csrf: str
    ends_at_ms: int


@dataclass(frozen=True, slots=True)
class Pending:
    """A sign-in that went to the issuer. browser: the hash of the cookie it began with."""

    browser: str
    attempt: Attempt
    then: str
    ends_at_ms: int


class Sessions:
    def __init__(self, clock: Clock, base_url: str) -> None:
        self._clock = clock
        self._base_url = base_url
        self._sessions: dict[str, Session] = {}
        self._pending: dict[str, Pending] = {}

    # ------------------------------------------------------------------------------------------------------- sign-in

    def begin(self, request: Request, then: str) -> tuple[str, Attempt]:
        """A sign-in for this browser: its cookie, and what goes to the issuer."""
        cookie = self._cookie_of(request) or secrets.token_urlsafe(32)
        attempt = Attempt.new()
        _put(self._pending, attempt.state, Pending(_hash(cookie), attempt, then, self._clock.now_ms() + PENDING_MS))
        return cookie, attempt

    def returned(self, request: Request, state: str) -> Pending | None:
        """The sign-in this browser began with this state, once; None for any other."""
        pending = self._pending.pop(state, None)
        cookie = self._cookie_of(request)
        if pending is None or not cookie or pending.browser != _hash(cookie):
            return None
        return pending if self._clock.now_ms() < pending.ends_at_ms else None

    def open(self, grant: Grant, who: Principal) -> str:
        """A new session; returns its cookie, which is always a new one."""
        cookie = secrets.token_urlsafe(32)
        key = _hash(cookie)
        csrf = hmac.new(cookie.encode(), b"csrf", "sha256").hexdigest()
        _put(self._sessions, key, Session(key, _whose(who), grant, csrf, self._clock.now_ms() + SESSION_MS))
        return cookie

    # ------------------------------------------------------------------------------------------------------- sessions

    def of(self, request: Request) -> Session | None:
        cookie = self._cookie_of(request)
        session = self._sessions.get(_hash(cookie)) if cookie else None
        return session if session is not None and self._clock.now_ms() < session.ends_at_ms else None

    def now(self, session: Session) -> Session | None:
        """The session as it is now; None when it is over."""
        known = self._sessions.get(session.key)
        return known if known is not None and self._clock.now_ms() < known.ends_at_ms else None

    def renew(self, session: Session, grant: Grant) -> Session:
        renewed = replace(session, grant=grant)
        if session.key in self._sessions:
            self._sessions[session.key] = renewed
        return renewed

    def close(self, session: Session) -> None:
        self._sessions.pop(session.key, None)

    def all_of(self, who: Principal) -> list[Session]:
        """Every session of this person in this process, in whichever browser."""
        return [one for one in self._sessions.values() if one.whose == _whose(who) and self.now(one) is not None]

    def is_ours(self, request: Request, session: Session, token: str) -> bool:
        """Whether a form came from a page of ours in this very browser. A form without an Origin did not."""
        if request.headers.get("origin", "") not in spellings(self._base_url):
            return False
        if request.headers.get("sec-fetch-site", "same-origin") != "same-origin":
            return False
        return hmac.compare_digest(token.encode(), session.csrf.encode())

    # -------------------------------------------------------------------------------------------------------- cookies

    def give(self, response: Response, cookie: str) -> Response:
        response.set_cookie(self._name, cookie, httponly=True, secure=self._is_https, samesite="lax", path="/")
        return response

    def forget(self, response: Response) -> Response:
        response.delete_cookie(self._name, httponly=True, secure=self._is_https, samesite="lax", path="/")
        return response

    def _cookie_of(self, request: Request) -> str:
        cookie = request.cookies.get(self._name, "")
        return cookie if len(cookie) == _COOKIE_CHARS and cookie.isascii() else ""

    @property
    def _is_https(self) -> bool:
        return self._base_url.startswith("https:")

    @property
    def _name(self) -> str:
        """`__Host-` binds a cookie to this origin, but needs TLS; on loopback the port keeps two brokers apart."""
        return "__Host-console" if self._is_https else f"console-{urlsplit(self._base_url).port or 80}"


def _whose(who: Principal) -> tuple[str, str, str]:
    return who.issuer, who.tenant, person(who.user or who.agent)


def _hash(cookie: str) -> str:
    return hashlib.sha256(cookie.encode()).hexdigest()


def _put(kept: dict[str, Value], key: str, value: Value) -> None:
    while len(kept) >= MOST:
        kept.pop(next(iter(kept)))
    kept[key] = value
