"""What a hostile or broken HTTP server can do to a call: it ends in time, within bounds, with the truth."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from anyio.abc import SocketStream
from hypothesis import example, given
from hypothesis import strategies as st

from broker.backends.decoding import BadEncodingError, Inflater, excerpt, short, storable, strict_json
from broker.errors import AnswerWithheld, BackendError, Broken, BrokerError, Rejected, TimedOut, Unavailable
from tests.downstream import ask, house, http_tool, opened, raw, text_of

pytestmark = pytest.mark.anyio

CAP = 65_536
GET = {"method": "GET", "path": "/"}
Handle = Callable[[SocketStream], Awaitable[None]]


def answer(body: bytes, *headers: str, status: str = "200 OK", length: bool = True) -> bytes:
    lines = [f"HTTP/1.1 {status}", *headers, *([f"Content-Length: {len(body)}"] if length else []), "", ""]
    return "\r\n".join(lines).encode() + body


def says(*parts: bytes, then: Handle | None = None) -> Handle:
    async def handle(stream: SocketStream) -> None:
        for part in parts:
            await stream.send(part)
        if then:
            await then(stream)

    return handle


async def hang(_: SocketStream) -> None:
    await anyio.sleep_forever()


def trickle(part: bytes) -> Handle:
    async def handle(stream: SocketStream) -> None:
        while True:
            await stream.send(part)
            await anyio.sleep(0.02)

    return handle


def flood(part: bytes) -> Handle:
    async def handle(stream: SocketStream) -> None:
        while True:
            await stream.send(part)

    return handle


async def outcome(handle: Handle, **spec: Any) -> Any:
    """What a call ends in: its text, or the error."""
    async with house() as where, raw(handle) as url:
        backend_spec = {"base_url": url, "allow_private": True, "timeout": "1s", "response_bytes": CAP, **spec}
        async with opened(where, "http", backend_spec) as backend:
            try:
                return text_of(await ask(backend, http_tool(GET)))
            except BrokerError as error:
                return error


JSON = "Content-Type: application/json"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


async def test_an_honest_answer_arrives() -> None:
    assert await outcome(says(answer(b'{"a":1}', JSON))) == '{"a":1}'


async def test_an_answer_at_the_cap_arrives_and_one_byte_more_is_withheld() -> None:
    fits = b'"' + b"x" * (CAP - 2) + b'"'
    assert await outcome(says(answer(fits, JSON))) == fits.decode()
    late = await outcome(says(answer(b'"x' + fits[1:], JSON)))
    assert isinstance(late, AnswerWithheld)
    assert "response_bytes" in late.message


@pytest.mark.parametrize("head", [b"Transfer-Encoding: chunked\r\n\r\n", b"Connection: close\r\n\r\n"])
async def test_a_body_without_end_is_cut_at_the_cap(head: bytes) -> None:
    part = b"x" * 8192
    chunk = b"%x\r\n%s\r\n" % (len(part), part) if b"chunked" in head else part
    assert isinstance(await outcome(says(HEAD + head, then=flood(chunk)), timeout="10s"), AnswerWithheld)


@pytest.mark.parametrize(
    "handle",
    [
        hang,
        says(HEAD, then=hang),
        says(HEAD + b"Content-Length: 5\r\n\r\n", then=hang),
        says(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", then=trickle(b"1\r\n \r\n")),
        says(b"HTTP/1.1 200 OK\r\n", then=trickle(b"X-A: b\r\n")),
        says(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n", then=trickle(b": alive\n\n")),
        says(then=trickle(b"HTTP/1.1 103 Early Hints\r\n\r\n")),
    ],
)
async def test_a_slow_answer_ends_at_the_total_deadline(handle: Handle) -> None:
    late = await outcome(handle, timeout="300ms")
    assert isinstance(late, TimedOut | Broken)
    assert late.effect == "unknown"


@pytest.mark.parametrize(
    "handle",
    [
        says(),
        says(b"garbage\r\n\r\n"),
        says(HEAD + b"Content-Length: 50\r\n\r\n{"),
        says(HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n12345"),
        says(HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"),
        says(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 200_000),
        says(b"HTTP/1.1 999\r\n\r\n\r\n"),
    ],
)
async def test_what_is_no_answer_leaves_the_effect_unknown(handle: Handle) -> None:
    error = await outcome(handle, timeout="5s")
    assert isinstance(error, BackendError), error
    assert error.effect == "unknown"


TWICE = gzip.compress(gzip.compress(b"[1]", mtime=0), mtime=0)
BOMB = gzip.compress(b"\0" * 50_000_000)


async def test_a_compressed_answer_is_read_and_a_bomb_is_cut_while_it_inflates() -> None:
    assert await outcome(says(answer(gzip.compress(b"[1]"), JSON, "Content-Encoding: gzip"))) == "[1]"
    assert await outcome(says(answer(zlib.compress(b"[2]"), JSON, "Content-Encoding: deflate"))) == "[2]"
    error = await outcome(says(answer(BOMB[:CAP], JSON, "Content-Encoding: gzip")))
    assert isinstance(error, AnswerWithheld)


def test_inflating_never_makes_more_than_one_step_at_a_time() -> None:
    pieces = Inflater("gzip").feed(BOMB)
    assert all(len(next(pieces)) <= 65_536 for _ in range(20))


def test_several_gzip_members_are_one_body() -> None:
    assert b"".join(Inflater("gzip").feed(gzip.compress(b"a") + gzip.compress(b"b"))) == b"ab"


@pytest.mark.parametrize(
    ("body", "coding"),
    [
        (b"[1]", "br"), (b"[1]", "zstd"), (b"[1]", "gzip"), (TWICE, "gzip, gzip"),
        (gzip.compress(b"[1]", mtime=0)[:-9], "gzip"), (b"[1]", "x" * 500),
    ],
)  # fmt: skip
async def test_an_encoding_that_was_not_asked_for_or_is_a_lie_is_refused(body: bytes, coding: str) -> None:
    error = await outcome(says(answer(body, JSON, f"Content-Encoding: {coding}")))
    assert isinstance(error, AnswerWithheld)
    assert error.effect == "done"


def test_a_body_that_ends_in_the_middle_of_its_compressed_data_is_refused() -> None:
    inflater = Inflater("gzip")
    list(inflater.feed(gzip.compress(b"x" * 1000)[:-10]))
    with pytest.raises(BadEncodingError, match="middle"):
        inflater.finish()


NOT_JSON = [
    b"{", b"NaN", b"[Infinity]", b"-Infinity", b"1e400", b'{"a":1,"a":2}', b'{"x":{"a":1,"a":2}}', b"[1] [2]",
    b"\xff\xfe1\x00", b"\xef\xbb\xbf[1]", b'"\\ud800"', b'"\xff"', b"18446744073709551616", b"[" * 500 + b"]" * 500,
    b"'a'", b"// x\n1", b"<html>",
]  # fmt: skip


@pytest.mark.parametrize("body", NOT_JSON)
async def test_json_is_strict_and_the_caller_learns_that_it_was_done(body: bytes) -> None:
    error = await outcome(says(answer(body, JSON)))
    assert isinstance(error, AnswerWithheld)
    assert error.effect == "done"
    assert error.facts["body_digest"].startswith("sha256:")


@pytest.mark.parametrize(
    "body", [b'{"a":18446744073709551615}', b"-9223372036854775808", b"1.5", b"null", b'"\\u0000"', b"[]"]
)
def test_json_is_kept_as_it_is(body: bytes) -> None:
    import orjson

    assert orjson.dumps(strict_json(body)) == body


_PIECES = st.sampled_from(
    ['{"a":', '"a":1', "{", "}", "[", "]", ",", "1", "-0", "0.0", "1e2", "1e400", "18446744073709551616",
     '"a"', '"\\u00e9"', '"é"', "null", "true", " ", '{"a":1,"a":1}', "1.0", "[" * 60, "]" * 60]
)  # fmt: skip


@given(st.lists(_PIECES, max_size=12).map(lambda pieces: "".join(pieces).encode()))
@example(b"[" * 120 + b"]" * 120)
async def test_json_that_is_read_once_is_what_two_parsers_agree_on(body: bytes) -> None:
    import jiter
    import orjson

    def read(by: Callable[[bytes], Any]) -> Any:
        try:
            value = by(body)
            return repr(value), orjson.dumps(value)
        except (ValueError, TypeError, RecursionError):
            return "refused"

    def both(body: bytes) -> Any:
        orjson.loads(body)
        return jiter.from_json(body, allow_inf_nan=False, catch_duplicate_keys=True)

    assert read(strict_json) == read(both)


@pytest.mark.parametrize("kind", ["text/html", "application/octet-stream", "image/png", "", "application/jsonevil"])
async def test_an_answer_of_another_kind_is_withheld(kind: str) -> None:
    headers = [f"Content-Type: {kind}"] if kind else []
    assert isinstance(await outcome(says(answer(b"[1]", *headers))), AnswerWithheld)


@pytest.mark.parametrize("kind", ["application/json", "application/problem+json; charset=utf-8", "APPLICATION/JSON"])
async def test_json_has_several_names(kind: str) -> None:
    assert await outcome(says(answer(b"[1]", f"Content-Type: {kind}"))) == "[1]"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_an_answer_and_not_followed(status: int) -> None:
    asked: list[int] = []

    async def handle(stream: SocketStream) -> None:
        asked.append(1)
        await stream.send(answer(b"", "Location: /elsewhere", status=f"{status} Moved"))

    error = await outcome(handle)
    assert isinstance(error, Rejected)
    assert "not followed" in error.message
    assert len(asked) == 1


async def test_loopback_behind_a_public_name_is_not_connected_to() -> None:
    connected: list[int] = []

    async def handle(stream: SocketStream) -> None:
        connected.append(1)

    async with house() as where, raw(handle) as url:
        port = url.rpartition(":")[2]
        async with opened(where, "http", {"base_url": f"https://localhost:{port}"}) as backend:
            with pytest.raises(Unavailable, match="allow_private") as error:
                await ask(backend, http_tool(GET))
    assert error.value.effect == "none"
    assert not connected


async def test_a_name_nobody_knows_is_unavailable() -> None:
    async with house() as where, opened(where, "http", {"base_url": "https://nowhere.invalid"}) as backend:
        with pytest.raises(Unavailable, match="cannot be") as error:
            await ask(backend, http_tool(GET))
    assert error.value.effect == "none"


def test_an_excerpt_is_short_printable_and_without_secrets() -> None:
    text = b'{"message": "no\\u001b[31m \\u202e for s3cret-token, Bearer abcdefghijkl ' + b"x" * 900 + b'"}'
    shown = excerpt(text, "application/json", ("s3cret-token",))
    assert shown.startswith("no [31m for [redacted], Bearer [redacted] xxx")
    assert len(shown) <= 300
    assert excerpt(b"<b>no</b>", "text/html") == ""
    assert short("a\r\nb\tc\0d") == "a b c d"


@pytest.mark.parametrize(
    ("value", "fault"), [({"a": [1.5]}, False), ({"a": float("nan")}, True), ([float("inf")], True), (2**64, True)]
)
def test_values_read_by_another_parser_are_checked(value: Any, fault: bool) -> None:
    assert bool(storable(value)) == fault
