"""JSONTestSuite, the public suite of JSON texts, as what agents send: over HTTP and stdio, bare and as an argument.

Must-reject: refused as no JSON, and no call is made of it. Must-accept: read, so that a bare one is refused for being
no JSON-RPC message and an argument arrives; or refused by a limit that is named. Up to the reader: either of both.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest

from tests.serving import Served, modern_call, modern_headers, served
from tests.stories.test_wire_stdio import HELLO, Session, line
from tests.stories.test_wire_stdio import call as stdio_call

SUITE = Path(__file__).resolve().parents[3] / "shared" / "data" / "JSONTestSuite" / "test_parsing"
PARSE_ERROR, INVALID_REQUEST = -32700, -32600

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not SUITE.is_dir(), reason=f"JSONTestSuite is not at {SUITE}"),
]


def texts(verdict: str) -> dict[str, bytes]:
    found = {path.name: path.read_bytes() for path in sorted(SUITE.glob(f"{verdict}_*.json"))}
    assert len(found) > {"y": 90, "n": 180, "i": 30}[verdict]
    return found


def as_argument(text: bytes, message: Any) -> bytes:
    """This message with the text in the place of the argument `value`."""
    return orjson.dumps(message).replace(b'"PLACE"', text)


async def posted(house: Served, http: httpx2.AsyncClient, body: bytes) -> tuple[int, Any]:
    answer = await http.post(f"{house.url}/mcp", content=body, headers=modern_headers("tools/call", "echo"))
    return answer.status_code, answer.json()


def is_limit(error: Any) -> bool:
    return f"(limit: {error.get('data', {}).get('limit')})" in error["message"]


async def test_what_no_reader_must_take_is_refused_over_http_and_nothing_is_called() -> None:
    message = modern_call("echo", {"value": "PLACE"})
    async with served() as house, httpx2.AsyncClient(timeout=10) as http:
        for name, text in texts("n").items():
            for body in (text, as_argument(text, message)):
                status, said = await posted(house, http, body)
                assert status == 400, name
                assert said["error"]["code"] == PARSE_ERROR or is_limit(said["error"]), (name, said)
        assert house.tools.calls == []


async def test_what_every_reader_must_take_arrives_over_http_or_meets_a_named_limit() -> None:
    message, arrived = modern_call("echo", {"value": "PLACE"}), 0
    async with served() as house, httpx2.AsyncClient(timeout=10) as http:
        for name, text in texts("y").items():
            status, said = await posted(house, http, text)
            assert status == 400
            assert said["error"]["code"] == INVALID_REQUEST or is_limit(said["error"]), (name, said)
            status, said = await posted(house, http, as_argument(text, message))
            assert status == 200 or is_limit(said["error"]), (name, said)
            if status == 200:
                arrived += 1
                assert house.tools.calls[-1].arguments["value"] == orjson.loads(text), name
        assert arrived > 85
        for body in texts("i").values():
            status, said = await posted(house, http, body)
            assert status == 400


async def test_over_stdio_the_same_texts_meet_the_same_reader() -> None:
    """A text with a line end in it is several lines there, none of them a message."""
    message = stdio_call("echo", 7, value="PLACE")
    good = line(stdio_call("echo", "last"))
    for name, text in texts("n").items():
        session = await Session([HELLO, text + b"\n", as_argument(text, message) + b"\n", good]).run()
        assert len(session.tools.calls) == 1, name
        assert session.errors, name
        assert set(session.errors) <= {PARSE_ERROR, INVALID_REQUEST}, name
        assert session.answer("last")["result"]["isError"] is False
    lines = {name: text for name, text in texts("y").items() if not {b"\n", b"\r"} & {bytes([sign]) for sign in text}}
    assert len(lines) > 85
    for name, text in lines.items():
        session = await Session([HELLO, text + b"\n", as_argument(text, message) + b"\n", good]).run()
        told = [said["error"] for said in session.told if "error" in said]
        assert all(said["code"] == INVALID_REQUEST or "(limit: " in said["message"] for said in told), (name, told)
        if len(told) == 1:
            assert session.tools.calls[0].arguments["value"] == orjson.loads(text), name
