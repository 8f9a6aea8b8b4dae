"""What a hostile MCP server over HTTP can do: hurt the one call it was asked, within bounds, and nothing else."""

from __future__ import annotations

import gzip
from collections.abc import AsyncGenerator
from typing import Any

import anyio
import orjson
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from broker.backends.mcp import Remote
from broker.errors import AnswerWithheld, Broken, BrokerError, Rejected, TimedOut
from tests.downstream import ask, house, opened, serving, text_of, tool_with

pytestmark = pytest.mark.anyio

BOMB = gzip.compress(b" " * 20_000_000)
JSON = "application/json"
EVENTS = "text/event-stream"


def message(request: int, **result: Any) -> bytes:
    return orjson.dumps({"jsonrpc": "2.0", "id": request, "result": result})


def content(text: str) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": text}], "resultType": "complete"}


async def events(*parts: bytes, forever: bytes = b"", pause_s: float = 0.0) -> AsyncGenerator[bytes]:
    for part in parts:
        yield part
    while forever:
        yield forever
        await anyio.sleep(pause_s)


def notification(method: str = "notifications/message", **params: Any) -> bytes:
    frame = {"jsonrpc": "2.0", "method": method, "params": {"level": "info", "data": "x", **params}}
    return b"data: " + orjson.dumps(frame) + b"\n\n"


def misbehave(how: str, request: int) -> Response:
    good = message(request, **content("fine"))
    answers = {
        "fine": lambda: Response(good, media_type=JSON),
        "fine events": lambda: StreamingResponse(events(notification(), b"data: " + good + b"\n\n"), media_type=EVENTS),
        "other id": lambda: Response(message(request + 1_000_000, **content("for somebody else")), media_type=JSON),
        "bomb": lambda: Response(BOMB, media_type=JSON, headers={"Content-Encoding": "gzip"}),
        "huge": lambda: Response(message(request, **content("x" * 300_000)), media_type=JSON),
        "huge event": lambda: StreamingResponse(events(b"data: " + b"x" * 300_000), media_type=EVENTS),
        "comments": lambda: StreamingResponse(events(forever=b": still here\n\n", pause_s=0.01), media_type=EVENTS),
        "flood": lambda: StreamingResponse(events(forever=notification()), media_type=EVENTS),
        "progress flood": lambda: StreamingResponse(
            events(forever=notification("notifications/progress", progressToken=request, progress=1)), media_type=EVENTS
        ),
        "short": lambda: StreamingResponse(events(notification()), media_type=EVENTS),
        "html": lambda: Response("<html>", media_type="text/html"),
        "nan": lambda: Response(good.replace(b'"fine"', b"NaN"), media_type=JSON),
        "garbage": lambda: Response(b"{", media_type=JSON),
        "array": lambda: Response(b"[" + good + b"]", media_type=JSON),
        "redirect": lambda: RedirectResponse("/elsewhere", 307),
        "accepted": lambda: Response(status_code=202),
        "no content": lambda: Response(message(request, resultType="complete"), media_type=JSON),
        "strange": lambda: Response(message(request, **{**content("x"), "resultType": "surprise"}), media_type=JSON),
        "structured": lambda: Response(message(request, **content("x"), structuredContent=[1]), media_type=JSON),
    }
    return answers[how]()


async def endpoint(request: Request) -> Response:
    asked = orjson.loads(await request.body())
    if asked["method"] == "server/discover":
        capabilities: dict[str, Any] = {"tools": {}}
        found: dict[str, Any] = {
            "supportedVersions": ["2026-07-28"],
            "capabilities": capabilities,
            "resultType": "complete",
        }
        return Response(message(asked["id"], **found, ttlMs=0, cacheScope="private"), media_type=JSON)
    if asked["method"] == "tools/list":
        return Response(message(asked["id"], tools=[], resultType="complete"), media_type=JSON)
    return misbehave(asked["params"]["name"], asked["id"])


APP = Starlette(routes=[Route("/mcp", endpoint, methods=["POST"])])


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("fine", None), ("fine events", None), ("other id", TimedOut), ("bomb", AnswerWithheld),
        ("huge", AnswerWithheld),
        ("huge event", BrokerError), ("comments", TimedOut), ("flood", TimedOut), ("progress flood", TimedOut),
        ("short", Broken), ("html", AnswerWithheld), ("nan", AnswerWithheld), ("garbage", AnswerWithheld),
        ("array", AnswerWithheld), ("redirect", Rejected), ("accepted", Broken), ("no content", AnswerWithheld),
        ("strange", AnswerWithheld), ("structured", None),
    ],
)  # fmt: skip
async def test_only_the_call_that_was_misanswered_suffers(how: str, expected: type[BrokerError] | None) -> None:
    ended: list[BrokerError | None] = []

    async def suffer() -> None:
        try:
            await ask(backend, tool_with(Remote(how), timeout_s=0.5))
            ended.append(None)
        except BrokerError as error:
            ended.append(error)

    async with house() as where, serving(APP) as url:
        spec = {"url": f"{url}/mcp", "allow_private": True, "response_bytes": 200_000}
        async with opened(where, "mcp", spec) as backend:
            await where.until_settled(backend)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(suffer)
                for _ in range(5):
                    assert text_of(await ask(backend, tool_with(Remote("fine"), timeout_s=5))) == "fine"
            assert backend.health.state == "up"
    (error,) = ended
    assert error is None if expected is None else isinstance(error, expected), error
    assert error is None or error.effect != "none"
