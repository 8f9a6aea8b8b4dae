"""The routes of the protected-resource metadata (RFC 9728): one document for each endpoint, in the client's spelling.

A client compares `resource` with the URL it calls, so a caller of `localhost` must not read `127.0.0.1`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from broker.auth.challenge import WELL_KNOWN, protected_resource
from broker.model.address import ENDPOINTS, as_called
from broker.settings import Settings


def routes(settings: Settings, scopes: Callable[[], Iterable[str]], base_url: Callable[[], str]) -> list[Route]:
    """scopes: every scope a tool of the current catalog asks for. Open to anybody, from any web origin."""

    def route(endpoint_path: str) -> Route:
        async def document(request: Request) -> Response:
            called = as_called(base_url(), request.headers.get("host", ""))
            content = protected_resource(called, endpoint_path, issuers=issuers(settings, base_url()), scopes=scopes())
            return JSONResponse(content, headers={"Access-Control-Allow-Origin": "*", "Cache-Control": "no-cache"})

        return Route(WELL_KNOWN + endpoint_path, document, methods=["GET"])

    return [route(path) for path in ENDPOINTS]


def issuers(settings: Settings, base_url: str) -> list[str]:
    """Whose tokens are accepted, the embedded issuer first."""
    embedded = [base_url] if settings.auth.embedded.enabled else []
    return [*embedded, *(issuer.issuer for issuer in settings.auth.issuers)]
