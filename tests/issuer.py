"""An OpenID issuer of somebody else's, on a real port: tells the truth, or the one lie a test asks for."""

from __future__ import annotations

import hashlib
import secrets
import time
from base64 import urlsafe_b64encode
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlencode

from joserfc.jwk import ECKey
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from tests.issuing import changed, es256, http_serving, signed

CLIENT, SECRET, RESOURCE = "the-console", "s3cret/with+signs", "https://broker.example/api"


@dataclass
class Issuer:
    """Whoever comes is signed in as `user`. lie: what it answers instead, by part: callback, access, id, reply."""

    user: str = "rita"
    scope: str = "openid broker.review"
    url: str = ""
    lie: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    access_s: int = 600
    key: ECKey = field(default_factory=lambda: ECKey.generate_key("P-256", auto_kid=True))
    asked: dict[str, dict[str, str]] = field(default_factory=dict[str, dict[str, str]])  # code -> its request
    refreshed: int = 0
    revoked: list[str] = field(default_factory=list[str])

    @property
    def settings(self) -> dict[str, Any]:
        """What a broker's settings say of it."""
        return {
            "auth": {"issuers": [{"issuer": self.url, "audience": [RESOURCE]}], "embedded": {"enabled": False}},
            "console": {
                "issuer": self.url, "client_id": CLIENT, "client_secret": SECRET, "resource": RESOURCE
            },
        }  # fmt: skip

    def routes(self) -> list[Route]:
        return [
            Route("/.well-known/openid-configuration", self._metadata),
            Route("/jwks", self._jwks),
            Route("/authorize", self._authorize),
            Route("/token", self._token, methods=["POST"]),
            Route("/revoke", self._revoke, methods=["POST"]),
        ]

    async def _metadata(self, _: Request) -> Response:
        return JSONResponse(
            {
                "issuer": self.url,
                "jwks_uri": f"{self.url}/jwks",
                "authorization_endpoint": f"{self.url}/authorize",
                "token_endpoint": f"{self.url}/token",
                "revocation_endpoint": f"{self.url}/revoke",
                "end_session_endpoint": f"{self.url}/end",
                "authorization_response_iss_parameter_supported": True,
            }
        )

    async def _jwks(self, _: Request) -> Response:
        return JSONResponse({"keys": [{**self.key.as_dict(private=False), "use": "sig"}]})

    async def _authorize(self, request: Request) -> Response:
        given = dict(request.query_params)
        code = secrets.token_urlsafe(16)
        self.asked[code] = given
        answer = changed({"code": code, "state": given["state"], "iss": self.url}, self.lie.get("callback", {}))
        return RedirectResponse(f"{given['redirect_uri']}?{urlencode(answer)}", 303)

    async def _token(self, request: Request) -> Response:
        form = dict(parse_qsl((await request.body()).decode()))
        if request.headers.get("authorization", "")[:6] != "Basic ":
            return JSONResponse({"error": "invalid_client"}, 401)
        if form.get("resource") != RESOURCE:  # at many issuers, the token would then be for userinfo
            return JSONResponse({"error": "invalid_target"}, 400)
        if form["grant_type"] == "refresh_token":
            self.refreshed += 1
            return JSONResponse({"access_token": self._access(600), "refresh_token": "r2"})
        begun = self.asked.pop(form["code"], None)
        digest = hashlib.sha256(form["code_verifier"].encode()).digest()
        challenge = urlsafe_b64encode(digest).rstrip(b"=").decode()
        if begun is None or begun["code_challenge"] != challenge or begun["redirect_uri"] != form["redirect_uri"]:
            return JSONResponse({"error": "invalid_grant"}, 400)
        whole = {
            "access_token": self._access(self.access_s),
            "refresh_token": "r1",
            "id_token": self._id_token(begun["nonce"]),
        }
        return JSONResponse(changed(whole, self.lie.get("reply", {})))

    async def _revoke(self, request: Request) -> Response:
        self.revoked.append(dict(parse_qsl((await request.body()).decode()))["token"])
        return Response(status_code=200)

    def _access(self, seconds: int) -> str:
        now = int(time.time())
        whole = {"iss": self.url, "aud": RESOURCE, "sub": self.user, "client_id": CLIENT, "scope": self.scope}
        times = {"iat": now - 60, "exp": now + seconds, "jti": secrets.token_urlsafe(8)}
        return self._signed("at+jwt", changed({**whole, **times}, self.lie.get("access", {})))

    def _id_token(self, nonce: str) -> str:
        now = int(time.time())
        whole = {"iss": self.url, "aud": CLIENT, "sub": self.user, "iat": now, "exp": now + 60, "nonce": nonce}
        return self._signed("JWT", changed(whole, self.lie.get("id", {})))

    def _signed(self, kind: str, claims: Mapping[str, Any]) -> str:
        key = self.lie.get("key", {}).get(kind, self.key)
        header = {"alg": "ES256", "typ": kind, "kid": self.key.kid}
        return signed(header, claims, lambda message: es256(key, message))


@asynccontextmanager
async def issuing(**options: Any) -> AsyncGenerator[Issuer]:
    issuer = Issuer(**options)
    async with http_serving(Starlette(routes=issuer.routes())) as url:
        issuer.url = url
        yield issuer
