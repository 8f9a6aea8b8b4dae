"""A browser and who is signed in with it: one cookie, renewed at sign-in and ended on the server.

The cookie is 256 random bits; only its hash is stored, and only once somebody is signed in. The CSRF token of a form is
derived from the cookie, so it needs no storage and changes with it; a form must also come from ourselves by its Origin.
"""

from __future__ import annotations

import hmac
import secrets
from urllib.parse import urlsplit

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import Response

from broker.authserver.protocol import House
from broker.data import dataclass
from broker.model.address import spellings
from broker.model.directory import Account, BrowserSession, secret_hash

SESSION_MS = 8 * 3_600_000
_COOKIE_CHARS = 43


@dataclass(frozen=True, slots=True)
class Visitor:
    """secret: the cookie. account None: not signed in. is_new: the cookie has yet to be set."""

    secret: str
    account: Account | None = None
    is_new: bool = False

    @property
    def csrf(self) -> str:
        return hmac.new(self.secret.encode(), b"csrf", "sha256").hexdigest()


class Browser:
    def __init__(self, house: House) -> None:
        self._house = house

    async def visitor(self, request: Request) -> Visitor:
        secret = request.cookies.get(self._cookie, "")
        if len(secret) != _COOKIE_CHARS or not secret.isascii():
            return Visitor(secrets.token_urlsafe(32), is_new=True)
        return Visitor(secret, await to_thread.run_sync(self._account, secret))

    async def signed_in(self, account: Account) -> Visitor:
        """A new session under a new cookie: one that somebody planted before is worth nothing now."""
        secret = secrets.token_urlsafe(32)
        expires_at_ms = self._house.clock.now_ms() + SESSION_MS
        session = BrowserSession(secret_hash(secret), account.name, expires_at_ms)
        await to_thread.run_sync(self._house.directory.add_session, session)
        return Visitor(secret, account, is_new=True)

    async def sign_out(self, visitor: Visitor, *, everywhere: bool = False) -> None:
        directory = self._house.directory
        await to_thread.run_sync(directory.remove_session, secret_hash(visitor.secret))
        if everywhere and visitor.account is not None:
            await to_thread.run_sync(directory.remove_sessions, visitor.account.name)

    def with_cookie(self, response: Response, visitor: Visitor) -> Response:
        if visitor.is_new:
            response.set_cookie(
                self._cookie, visitor.secret, httponly=True, secure=self._is_https, samesite="lax", path="/"
            )
        return response

    def forget(self, response: Response) -> Response:
        response.delete_cookie(self._cookie, httponly=True, secure=self._is_https, samesite="lax", path="/")
        return response

    def is_ours(self, request: Request, visitor: Visitor, token: str) -> bool:
        """Whether a form was ours and came from a page of ours in this very browser."""
        origin = request.headers.get("origin")
        if origin is not None and origin not in spellings(self._house.base_url()):
            return False
        if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return False
        return not visitor.is_new and hmac.compare_digest(token.encode(), visitor.csrf.encode())

    def _account(self, secret: str) -> Account | None:
        session = self._house.directory.session(secret_hash(secret))
        return None if session is None else self._house.directory.account(session.account)

    @property
    def _is_https(self) -> bool:
        return self._house.base_url().startswith("https:")

    @property
    def _cookie(self) -> str:
        """`__Host-` binds a cookie to this origin, but needs TLS; on loopback the port keeps two brokers apart."""
        if self._is_https:
            return "__Host-broker"
        return f"broker-{urlsplit(self._house.base_url()).port or 80}"
