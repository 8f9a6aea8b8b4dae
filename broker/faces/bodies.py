"""Reading what people's programs and browsers send to the API and the console: bounded, strict, in one meaning only."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, cast
from urllib.parse import parse_qsl

import anyio
from starlette.requests import ClientDisconnect, Request

from broker.errors import Malformed
from broker.faces.mcp.strict import JsonLimits, read_json

BODY_BYTES = 65_536
BODY_S = 10.0
VALUE_CHARS = 4096
FIELDS = 32


async def form(request: Request, *, chars: int = VALUE_CHARS) -> dict[str, str]:
    """The fields of a form, none longer than `chars`. Raises Malformed."""
    _expect(request, "application/x-www-form-urlencoded")
    try:
        return _fields((await _body(request)).decode("ascii"), chars)
    except UnicodeDecodeError:
        raise Malformed("The form is not properly encoded.") from None


async def json_object(
    request: Request, known: Collection[str], limits: JsonLimits, *, most_bytes: int = BODY_BYTES
) -> dict[str, Any]:
    """The members of a JSON object, as strict as agents' is; {} for an empty body. Raises Malformed, also for a member
    that is not known."""
    body = await _body(request, most_bytes)
    if not body:
        return {}
    _expect(request, "application/json")
    value = read_json(body, limits)
    if not isinstance(value, dict):
        raise Malformed("The body is not a JSON object.")
    members = cast("dict[str, Any]", value)
    _only(members, known)
    return members


def fields(request: Request, known: Collection[str]) -> dict[str, str]:
    """The parameters of the URL. Raises Malformed, also for one that is not known."""
    given = _fields(request.url.query)
    _only(given, known)
    return given


def query(request: Request, known: Collection[str]) -> dict[str, str]:
    """The same, where empty ones count as absent: a form that was not filled in."""
    return {name: value for name, value in fields(request, known).items() if value}


def _only(given: Collection[str], known: Collection[str]) -> None:
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise Malformed(
            f"{unknown[0][:64]!r} is not known here.",
            next_step=f"Known: {', '.join(sorted(known))}." if known else "Nothing is expected here.",
        )


def _fields(encoded: str, chars: int = VALUE_CHARS) -> dict[str, str]:
    try:
        pairs = parse_qsl(encoded, keep_blank_values=True, errors="strict", max_num_fields=FIELDS)
    except ValueError:
        raise Malformed("The parameters are not readable.") from None
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise Malformed("A parameter is there twice.")
    if any(len(value) > chars or "\x00" in value for value in fields.values()):
        raise Malformed(f"A parameter is longer than {chars} characters, or holds a NUL.")
    return fields


def _expect(request: Request, media_type: str) -> None:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != media_type:
        raise Malformed(f"The body is not {media_type}.")


async def _body(request: Request, most_bytes: int = BODY_BYTES) -> bytes:
    body = bytearray()
    try:
        with anyio.fail_after(BODY_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > most_bytes:
                    raise Malformed(f"The body is larger than {most_bytes} bytes.")
    except (TimeoutError, ClientDisconnect):
        raise Malformed("The body did not arrive.") from None
    return bytes(body)
