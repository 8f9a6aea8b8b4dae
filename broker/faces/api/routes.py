"""The API over HTTP: bearer token in, JSON out, every refusal in one form, and nothing kept by anybody on the way.

A cookie is never looked at here: who holds one cannot be made to call the API by another site.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import orjson
import structlog
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from broker.errors import (
    BrokerError,
    InsufficientScope,
    Internal,
    Malformed,
    Overloaded,
    OverQuota,
    RecordUnavailable,
    Unauthenticated,
    UnknownHold,
)
from broker.faces.api import openapi
from broker.faces.api.errors import STATUS, as_object
from broker.faces.api.inputs import Inputs
from broker.faces.api.operation import Asked, Operation, Reply
from broker.faces.api.operations import OPERATIONS
from broker.faces.mcp.ports import Challenge
from broker.faces.office import Office

PATH = "/api"
DOOR = "api"

_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
Handler = Callable[[Request], Awaitable[Response]]
Bearer = Callable[[list[str]], str | None]

log = structlog.get_logger("broker.api")


class Api:
    """bearer: the credential in the values of all Authorization headers, None without one; raises Malformed.

    called: the base URL in the spelling of this Host header.
    """

    def __init__(
        self, office: Office, *, bearer: Bearer, challenge: Challenge, called: Callable[[str], str], version: str
    ) -> None:
        self._office = office
        self._bearer = bearer
        self._challenge = challenge
        self._called = called
        self._version = version
        self._inputs = {operation.name: Inputs(operation, office.settings.limits) for operation in OPERATIONS}

    def routes(self) -> list[Route]:
        by_path: dict[str, dict[str, Operation]] = {}
        for operation in OPERATIONS:
            by_path.setdefault(operation.path, {})[operation.method] = operation
        return [
            Route(f"{PATH}/openapi.json", self._describe, methods=["GET"]),
            *(Route(path, self._serve(operations)) for path, operations in by_path.items()),
            Route(PATH, _Endpoint(self._nothing)),
            Route(f"{PATH}/{{rest:path}}", _Endpoint(self._nothing)),
        ]

    async def _describe(self, request: Request) -> Response:
        return _json(200, openapi.document(self._version, self._called(request.headers.get("host", ""))))

    async def _nothing(self, _: Request) -> Response:
        return _refusal(UnknownHold("There is nothing here.", next_step=f"See {PATH}/openapi.json."))

    def _serve(self, operations: dict[str, Operation]) -> _Endpoint:
        async def answered(request: Request) -> Response:
            operation = operations.get("GET" if request.method == "HEAD" else request.method)
            if operation is None:
                refused = _refusal(Malformed(f"This path takes {', '.join(operations)}."), status=405)
                refused.headers["Allow"] = ", ".join(operations)
                return refused
            return await self._answered(operation, request)

        return _Endpoint(answered)

    async def _answered(self, operation: Operation, request: Request) -> Response:
        try:
            credential = self._bearer(request.headers.getlist("authorization"))
            who = await self._office.authenticate(credential, DOOR)
            inputs = self._inputs[operation.name]
            query = inputs.query(request)
            body = await inputs.body(request) if request.method == "POST" else {}
            trace = request.headers.get("traceparent", "")
            asked = Asked(who, self._office, request.path_params, query, body, inputs.headers(request), trace)
            reply = await operation.handler(asked)
            if not isinstance(reply, Reply):
                return _json(200, reply)
            response = _json(reply.status, reply.value)
            response.headers.update(reply.headers)
            return response
        except Unauthenticated as error:
            refused = _refusal(error)
            refused.headers["WWW-Authenticate"] = self._challenge(
                self._called(request.headers.get("host", "")),
                PATH,
                error="" if error.facts.get("reason") == "missing" else "invalid_token",
                description=error.message,
                scopes=self._scopes(),
            )
            return refused
        except InsufficientScope as error:
            refused = _refusal(error)
            refused.headers["WWW-Authenticate"] = self._challenge(
                self._called(request.headers.get("host", "")),
                PATH,
                error="insufficient_scope",
                description=error.message,
                scopes=error.missing,
            )
            return refused
        except BrokerError as error:
            return _refusal(error)
        except Exception:  # a mistake of ours is told as one, without its inside
            log.exception("a request of the API failed", operation=operation.name)
            return _refusal(Internal("The broker failed.", next_step="Tell the operator when it was."))

    def _scopes(self) -> Iterable[str]:
        return (self._office.settings.hold.reviewer_scope,)


class _Endpoint:
    """An endpoint that answers every method itself; Starlette takes an object with `__call__` for an ASGI app."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        response = await self._handler(Request(scope, receive))
        await response(scope, receive, send)


def _refusal(error: BrokerError, *, status: int = 0) -> Response:
    response = _json(status or STATUS[error.code], as_object(error))
    if isinstance(error, RecordUnavailable | Overloaded):
        response.headers["Retry-After"] = "1"
    if isinstance(error, OverQuota):
        response.headers["Retry-After"] = str(math.ceil(error.retry_after_ms / 1000))
    return response


def _json(status: int, value: Any) -> Response:
    return Response(orjson.dumps(value, default=_plain), status, _HEADERS, "application/json")


def _plain(value: Any) -> Any:
    """Sets of names, and the read-only mappings of the catalog."""
    if isinstance(value, (set, frozenset)):
        return sorted(value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType] – sets of names
    return dict(value)
