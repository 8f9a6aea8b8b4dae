"""One plain `tools/call` of the 2026-07-28 revision over HTTP: a request, its answer, nothing that stands beside them.

That revision has no sessions and no server that asks back, so a call needs nothing of the SDK: the request is one POST
and its answer one JSON object or a stream of events that ends with it. What this way knows nothing about (the handshake
eras, listings, subscriptions, stdio) stays with the SDK, whose tasks, streams and typed messages cost several times
more than the rest of a call. The headers and the `_meta` of the era are the SDK's all the same (`sdk.Session.stamp`).

An answer with the id of another request is no answer: the call waits on until its deadline, as on every other
transport. Closing the response is how this revision cancels, and that is what a cancelled call does.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing
from typing import Any, cast

import anyio
import orjson

from broker.backends.credential import Outbound
from broker.backends.decoding import ACCEPT_ENCODING, excerpt, is_json, media_type, strict_json
from broker.backends.exchange import Cut, Exchange
from broker.backends.pace import Pace
from broker.backends.rejection import refused, rejected
from broker.backends.upstream import USER_AGENT, Lines, Response, Upstream
from broker.errors import AnswerWithheld, Broken, BrokerError

Progress = Callable[[float, float | None, str | None], Awaitable[None]]

_FIXED = {
    "User-Agent": USER_AGENT,
    "Accept": "application/json, text/event-stream",
    "Accept-Encoding": ACCEPT_ENCODING,
    "Content-Type": "application/json",
}
_FIXED_LINES = Lines.of((name.encode(), value.encode()) for name, value in _FIXED.items())
_LINE_END = re.compile(rb"\r\n|\n|\r")


class ModernCalls:
    """backend: its name. target: path of the endpoint. auth: how the broker identifies itself there."""

    def __init__(
        self,
        backend: str,
        target: str,
        upstream: Upstream,
        auth: Outbound | None,
        now_ms: Callable[[], int],
        *,
        pace: Pace,
    ) -> None:
        self._backend = backend
        self._target = target
        self._upstream = upstream
        self._auth = auth
        self._now_ms = now_ms
        self._pace = pace

    async def call(
        self,
        request_id: int,
        params: Mapping[str, Any],
        headers: Mapping[str, str],
        exchange: Exchange,
        progress: Progress | None,
    ) -> dict[str, Any]:
        """The result. params: with `_meta`. headers: those of the era.

        Raises BrokerError; at the deadline TimeoutError or TimedOut, a moment later where somebody else keeps it, too
        (`Exchange.is_exact`).
        On cancel: the connection is ended, which tells the peer.
        """
        body = orjson.dumps({"jsonrpc": "2.0", "id": request_id, "method": "tools/call", "params": params})
        named = {**headers, **exchange.send}
        auth, credential = self._auth, None
        try:
            if auth is not None:
                credential = await exchange.within(auth.header())
            response = await self._post(named, credential, body, exchange)
            if response.status == 401 and auth is not None and credential is not None:
                again = await exchange.within(auth.renewed(credential[1]))
                if again is not None:
                    response.close()
                    response = await self._post(named, again, body, exchange)
            try:
                whole = (
                    response.whole() if response.status == 200 and is_json(media_type(response.media_type)[0]) else None
                )
                if whole is not None:
                    message = self._ours(whole, request_id)
                else:
                    message = await exchange.within(self._answer(response, request_id, exchange, progress))
            finally:
                response.close()
        except Cut as cut:
            raise cut.error from None
        if message is None:
            await anyio.sleep_until(exchange.deadline)
            raise TimeoutError
        return self._result(message)

    def _post(
        self, named: Mapping[str, str], credential: tuple[str, str] | None, body: bytes, exchange: Exchange
    ) -> Awaitable[Response]:
        if credential is not None:
            every = {name.lower(): (name, value) for name, value in (*_FIXED.items(), *named.items(), credential)}
            lines = Lines.of((name.encode(), value.encode("latin-1")) for name, value in every.values())
        else:
            more = [b"%s: %s\r\n" % (name.encode(), value.encode("latin-1")) for name, value in named.items()]
            lines = Lines(b"".join((_FIXED_LINES.text, *more)), _FIXED_LINES.number + len(more))
        return self._upstream.ask("POST", self._target, lines, body, exchange)

    # --------------------------------------------------------------------------------------------------------- answers

    async def _answer(
        self, response: Response, request_id: int, exchange: Exchange, progress: Progress | None
    ) -> dict[str, Any] | None:
        """The JSON-RPC answer to this request; None when what came answers another."""
        kind, _ = media_type(response.media_type)
        if response.status >= 300:
            return await self._refusal(response, kind)
        if response.status == 202 or response.status < 200:
            raise Broken(
                f"Backend {self._backend!r} broke off (it accepted the call without an answer); whether it was done is "
                "unknown.",
                next_step="Check before you try again.",
            )
        if is_json(kind):
            return self._ours(await response.read(), request_id)
        if kind == "text/event-stream":
            return await self._from_events(response, request_id, exchange, progress)
        raise self._withheld(f"is {kind or 'of no content type'}, where JSON or events were expected")

    async def _from_events(
        self, response: Response, request_id: int, exchange: Exchange, progress: Progress | None
    ) -> dict[str, Any] | None:
        self._pace.earn()
        async with aclosing(_events(response, self._upstream.cap)) as events:
            try:
                async for data in events:
                    message = self._read(data)
                    if "method" not in message:
                        return message if _is_for(message, request_id) else None
                    await self._pace.spend(1)  # a flood waits in its own socket
                    if progress is not None and message["method"] == "notifications/progress":
                        await _pass_on(message, request_id, progress)
                    if exchange.back is not None and message["method"] == "notifications/message":
                        await exchange.back.log(_mapping(message.get("params")))
            except _TooLargeError:
                raise self._withheld(f"has an event of more than {self._upstream.cap} bytes") from None
        raise Broken(
            f"Backend {self._backend!r} broke off (its stream ended before an answer); whether it was done is unknown.",
            next_step="Check before you try again.",
        )

    async def _refusal(self, response: Response, kind: str) -> dict[str, Any]:
        """The JSON-RPC error in the body, which says more than its status. Raises Rejected when there is none, and for
        401, 403 and 429, which a proxy in front may have answered."""
        try:
            body = await response.read()
        except Cut:
            body = b""
        if response.status not in (401, 403, 429) and is_json(kind) and b'"jsonrpc"' in body:
            try:
                message = strict_json(body)
            except ValueError:
                message = None
            if isinstance(message, dict) and isinstance(cast("dict[str, Any]", message).get("error"), dict):
                return cast("dict[str, Any]", message)
        words = excerpt(body, response.header(b"content-type"), self._auth.masked if self._auth else ())
        waits = {"retry-after": response.header(b"retry-after")}
        raise rejected(self._backend, response.status, waits, words, self._now_ms())

    def _ours(self, body: bytes, request_id: int) -> dict[str, Any] | None:
        message = self._read(body)
        return message if _is_for(message, request_id) else None

    def _read(self, data: bytes) -> dict[str, Any]:
        try:
            message = strict_json(data)
        except ValueError as error:
            raise self._withheld(f"is not the JSON it says it is ({error})") from None
        if not isinstance(message, dict) or cast("dict[str, Any]", message).get("jsonrpc") != "2.0":
            raise self._withheld("is not a JSON-RPC message")
        return cast("dict[str, Any]", message)

    def _result(self, message: Mapping[str, Any]) -> dict[str, Any]:
        error, result = message.get("error"), message.get("result")
        if error is None and isinstance(result, dict):
            return cast("dict[str, Any]", result)
        told = _mapping(error if result is None else None)
        code, words = told.get("code"), told.get("message")
        if not isinstance(code, int) or not isinstance(words, str):
            raise self._withheld("is neither a result nor an error")
        raise refused(self._backend, code, words, told.get("data"))

    def _withheld(self, why: str) -> BrokerError:
        return AnswerWithheld(
            f"Backend {self._backend!r} answered, but its answer {why}.",
            next_step="Do not send it again; ask the tool's owner.",
        )


def _is_for(message: Mapping[str, Any], request_id: int) -> bool:
    answered = message.get("id")
    return answered == request_id and type(answered) is int  # JSON's true equals 1


async def _pass_on(message: Mapping[str, Any], request_id: int, progress: Progress) -> None:
    """Progress of this call, to its caller. A caller that does not read it delays only its own answer."""
    told = _mapping(message.get("params"))
    step, total, words = told.get("progress"), told.get("total"), told.get("message")
    if told.get("progressToken") != request_id or not _is_number(step):
        return
    await progress(
        float(cast("float", step)),
        float(cast("float", total)) if _is_number(total) else None,
        words if isinstance(words, str) else None,
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    """This JSON object; an empty one for anything else."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# ---------------------------------------------------------------------------------------------------------- the events


class _TooLargeError(ValueError):
    """One event has more bytes than a whole answer may have."""


async def _events(response: Response, cap: int) -> AsyncGenerator[bytes]:
    """The data of its message events. Raises Cut, _TooLargeError."""
    events = Events(cap)
    async with aclosing(response.pieces()) as pieces:
        async for piece in pieces:
            for data in events.feed(piece):
                yield data


class Events:
    """Server-sent events, as far as MCP uses them (WHATWG HTML, section 9.2.6): the data of `message` events."""

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._line: list[bytes] = []  # the beginnings of a line that has not ended
        self._data: list[bytes] = []
        self._kind = b""
        self._size = 0
        self._after_cr = False
        self._first = True

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """Raises _TooLargeError for an event of more than `most_bytes`, comments and unknown fields included."""
        if self._after_cr and piece.startswith(b"\n"):
            piece = piece[1:]
        if not piece:
            return
        self._after_cr = piece.endswith(b"\r")
        *ended, rest = _LINE_END.split(piece)
        for part in ended:
            self._grow(len(part))
            self._line.append(part)
            line = b"".join(self._line)
            self._line.clear()
            data = self._take(line)
            if data:
                yield data
        if rest:
            self._grow(len(rest))
            self._line.append(rest)

    def _grow(self, by: int) -> None:
        self._size += by
        if self._size > self._most:
            raise _TooLargeError

    def _take(self, line: bytes) -> bytes:
        """The data of the event that this line ends; b"" when it ends none, or one of another kind."""
        if self._first:
            self._first = False
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line:
            name, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if name == b"data":
                self._data.append(value)
            elif name == b"event":
                self._kind = value
            elif not self._data:
                self._size = 0  # a comment before an event is no part of it
            return b""
        data, kind = b"\n".join(self._data), self._kind
        self._data.clear()
        self._kind, self._size = b"", 0
        return data if kind in (b"", b"message") else b""
