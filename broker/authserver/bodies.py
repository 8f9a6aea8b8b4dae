"""Reading what a client or a browser sends to the authorization server: bounded, and in one meaning only."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl

import anyio
import jiter
from starlette.requests import ClientDisconnect, Request

from broker.authserver.protocol import Parameters

BODY_BYTES = 65_536
BODY_S = 10.0
VALUE_CHARS = 8192
FIELDS = 64
REPEATABLE = frozenset({"resource"})  # RFC 8707 section 2


class UnreadableError(Exception):
    """status, and what is wrong in one sentence without what was sent."""

    def __init__(self, status: int, description: str) -> None:
        super().__init__(description)
        self.status = status
        self.description = description


async def form(request: Request) -> Parameters:
    """The fields of a form. Raises UnreadableError."""
    if _media_type(request) != "application/x-www-form-urlencoded":
        raise UnreadableError(415, "Send a form: application/x-www-form-urlencoded.")
    try:
        return parameters((await _body(request)).decode("ascii"))
    except UnicodeDecodeError:
        raise UnreadableError(400, "The form is not properly encoded.") from None


async def json(request: Request) -> Any:
    """A JSON document, strictly read. Raises UnreadableError."""
    if _media_type(request) != "application/json":
        raise UnreadableError(415, "Send JSON: application/json.")
    try:
        return jiter.from_json(await _body(request), allow_inf_nan=False, catch_duplicate_keys=True)
    except ValueError:
        raise UnreadableError(400, "The body is not JSON.") from None


def parameters(encoded: str) -> Parameters:
    """Decoded `application/x-www-form-urlencoded` text. Empty values count as absent (RFC 6749 section 3.1).

    Raises UnreadableError when a name is repeated, when it is not UTF-8, or when it holds control characters.
    """
    if len(encoded) > BODY_BYTES:
        raise UnreadableError(400, "The parameters are too long.")
    try:
        fields = parse_qsl(encoded, keep_blank_values=True, errors="strict", max_num_fields=FIELDS)
    except ValueError:
        raise UnreadableError(400, "The parameters are not readable.") from None
    names = [name for name, _ in fields if name not in REPEATABLE]
    if len(names) != len(set(names)):
        raise UnreadableError(400, "A parameter is there twice.")
    if any(len(value) > VALUE_CHARS or not value.isprintable() for _, value in fields):
        raise UnreadableError(400, "A parameter is too long, or has characters that cannot be seen.")
    return [(name, value) for name, value in fields if value]


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def _body(request: Request) -> bytes:
    body = bytearray()
    try:
        with anyio.fail_after(BODY_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > BODY_BYTES:
                    raise UnreadableError(413, f"The body is larger than {BODY_BYTES} bytes.")
    except (TimeoutError, ClientDisconnect):
        raise UnreadableError(408, "The body did not arrive.") from None
    return bytes(body)
