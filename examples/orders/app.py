"""The order service's HTTP face: parse, ask the book, answer JSON.

Every path but `/health` wants the service's own bearer credential: whoever calls an API has a credential of that API,
and the broker is no exception. No rule about orders lives here.
"""

from __future__ import annotations

import hmac
import math
from functools import partial
from typing import Any, cast

from anyio import to_thread
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from .book import Book, BookError, cents

REFUND_FIELDS = {"amount", "reason"}


class Bearer:
    """Refuses whoever does not present the one credential of this service."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == "/health":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"authorization", b"")
        if hmac.compare_digest(given, self._expected):
            await self._app(scope, receive, send)
            return
        answer = JSONResponse(
            {"error": "This service wants its own bearer credential."}, 401, {"WWW-Authenticate": "Bearer"}
        )
        await answer(scope, receive, send)


def make_app(book: Book, token: str) -> Starlette:
    """token: the bearer credential every caller has to present."""

    def health(_: Request) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    def orders(request: Request) -> JSONResponse:
        query = request.query_params
        limit = query.get("limit", "50")
        if not limit.isdecimal() or not 1 <= int(limit) <= 100:
            raise BookError(400, "limit is a number from 1 to 100.")
        found = book.orders(customer=query.get("customer", ""), status=query.get("status", ""), limit=int(limit))
        return JSONResponse({"orders": found})

    def order(request: Request) -> JSONResponse:
        return JSONResponse(book.order(request.path_params["order_id"]))

    def cancel(request: Request) -> JSONResponse:
        return JSONResponse(book.cancel(request.path_params["order_id"]))

    async def make_refund(request: Request) -> JSONResponse:
        key = request.headers.get("idempotency-key", "")
        if not key:
            raise BookError(400, "A refund wants an Idempotency-Key header.")
        amount_cents, reason = _read_refund(await _json(request))
        call_id = request.headers.get("x-broker-call-id", "")
        refund = partial(
            book.refund, request.path_params["order_id"], amount_cents, reason=reason, key=key, call_id=call_id
        )
        made, new = await to_thread.run_sync(refund)
        return JSONResponse(made, 201 if new else 200)

    def refund_log(_: Request) -> JSONResponse:
        return JSONResponse({"requests": book.log()})

    async def refuse(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": str(error)}, error.status if isinstance(error, BookError) else 500)

    return Starlette(
        routes=[
            Route("/health", health),
            Route("/orders", orders),
            Route("/orders/{order_id}", order),
            Route("/orders/{order_id}/cancel", cancel, methods=["POST"]),
            Route("/orders/{order_id}/refunds", make_refund, methods=["POST"]),
            Route("/refund-log", refund_log),
        ],
        middleware=[Middleware(Bearer, token=token)],
        exception_handlers={BookError: refuse},
    )


async def _json(request: Request) -> dict[str, Any]:
    try:
        body = await request.json()
    except ValueError as error:
        raise BookError(400, "The body is not JSON.") from error
    if not isinstance(body, dict) or not body.keys() <= REFUND_FIELDS:
        raise BookError(400, "The body is an object with amount and reason.")
    return cast("dict[str, Any]", body)


def _read_refund(body: dict[str, Any]) -> tuple[int, str]:
    amount, reason = body.get("amount"), body.get("reason", "")
    if isinstance(amount, bool) or not isinstance(amount, int | float) or not math.isfinite(amount):
        raise BookError(400, "amount is a number.")
    if cents(amount) < 1 or abs(amount * 100 - cents(amount)) > 1e-6:
        raise BookError(400, "amount is at least 0.01 and has at most two decimals.")
    if not isinstance(reason, str):
        raise BookError(400, "reason is text.")
    return cents(amount), reason
