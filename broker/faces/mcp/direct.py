"""The common cases, answered without a second parse: a 2026-07-28 `tools/call` that ends as one JSON object, and
`tools/list`.

It takes only what it fully understands: a plain call with a name, arguments and the usual `_meta`. Whoever asks for
progress or logs, sends answers to input requests, or calls a tool with `x-mcp-header` arguments goes on to the SDK;
that is decided before the call is made, so a call is never made twice. A call that stays silent for QUIET_S (a hold
waiting for a person, a slow backend) has its answer turned into an event stream of comments with the result at its end,
where the client accepts one, so that no proxy in between takes the silence for a dead peer.

Why no task per call to watch for the client's leaving: the connection tells (`broker.faces.line`), and a task
group, or a scope of cancellation, costs more than everything else here. Where there is no such connection, a task group
does it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, cast

import anyio
import orjson
import structlog

from broker.errors import Broken, InsufficientScope, Unauthenticated, UnknownTool
from broker.faces.line import ANSWER, HANGUP, Answering, Hangup
from broker.faces.mcp.agreement import CAPABILITIES_KEY, CLIENT_KEY, INVALID_PARAMS, SERVER_KEY, VERSION_KEY
from broker.faces.mcp.calls import (
    PROTOCOL_ERRORS,
    as_told,
    build_call,
    ended_otherwise,
    modern_result,
    protocol_error,
    unknown_tool,
)
from broker.faces.mcp.ports import House
from broker.faces.mcp.replies import JSON_LINES, STREAM_HEADERS, encoded_body, error_body, result_body, send_body
from broker.faces.mcp.request import Request, Send
from broker.faces.mcp.strict import RequestId
from broker.faces.refusal import as_result
from broker.model.answer import Answer
from broker.model.call import Call

QUIET_S = 15.0
LOOK_EVERY_S = 5.0
ENTRIES_KEPT = 10_000
LIST_BYTES = 2_097_152  # of the latest list, if it is not longer: most clients may use the same tools

_PLAIN_PARAMS = frozenset({"name", "arguments", "_meta"})

_NO_EXTENSIONS: Mapping[str, Any] = {}

log = structlog.get_logger("broker.mcp")


class Exchange:
    """One response being owed: one JSON object, or from the first `ping` on an event stream."""

    __slots__ = ("_answer", "_ended", "_lock", "_send", "last_byte")

    def __init__(self, send: Send, answer: Answering | None, now: float) -> None:
        """answer: sends a whole response in one write, where there is that. now: the loop's time."""
        self._send = send
        self._answer = answer
        self._lock: anyio.Lock | None = None  # made when it becomes a stream
        self._ended = False
        self.last_byte = now

    async def ping(self) -> None:
        """Keep a silent response alive with an SSE comment."""
        if self._ended:
            return
        first = self._lock is None
        self._lock = lock = self._lock or anyio.Lock()
        self.last_byte = anyio.current_time()
        async with lock:
            if first:
                await self._send({"type": "http.response.start", "status": 200, "headers": STREAM_HEADERS})
            if not self._ended:
                await self._send({"type": "http.response.body", "body": b": waiting\r\n\r\n", "more_body": True})

    def at_once(self, body: bytes) -> bool:
        """Answer in one write, if nothing has gone out and nobody has to wait; False otherwise."""
        self._ended = True
        return self._lock is None and self._answer is not None and self._answer(JSON_LINES, body)

    async def finish(self, status: int, body: bytes) -> None:
        """Answer. Once it is a stream the status has gone out already and the body says it all."""
        if status == 200 and self.at_once(body):
            return
        self._ended = True
        if self._lock is None:
            await send_body(self._send, status, body)
            return
        async with self._lock:
            event = b"event: message\r\ndata: " + body + b"\r\n\r\n"
            await self._send({"type": "http.response.body", "body": event})

    @property
    def is_stream(self) -> bool:
        return self._lock is not None


class Direct:
    def __init__(self, house: House, *, server_info: Mapping[str, str]) -> None:
        self._house = house
        self._pipeline = house.pipeline
        self._clock = house.clock
        self._on_listed = house.on_listed
        self._server_info = dict(server_info)
        self._meta = orjson.dumps({SERVER_KEY: self._server_info})
        self._quiet: set[Exchange] = set()
        self._rendered: dict[int, tuple[Mapping[str, Any], bytes]] = {}  # entries of lists, and their JSON
        self._latest: tuple[tuple[Mapping[str, Any], ...], bytes] = (), self._listed(())
        self._mirrors: dict[str, tuple[Any, bool]] = {}  # tool -> (its schema, whether it uses x-mcp-header)

    def takes(self, request: Request) -> bool:
        """Whether this modern `tools/call`, already in agreement with its headers, can be answered here."""
        params = request.message.params
        return is_plain_call(params, *request.accepts) and not self.mirrors_arguments(params["name"])

    def lists(self, request: Request) -> bool:
        """Whether this modern `tools/list`, already in agreement with its headers, can be answered here: the SDK would
        copy and judge every entry again, which are ours."""
        params = request.message.params
        return all(request.accepts) and len(params) == 1 and _is_plain(cast("dict[str, Any]", params["_meta"]))

    async def list_tools(self, request: Request) -> None:
        """The whole list at once. Each entry is written as JSON when it is first asked for; the latest list is kept."""
        listing = self._pipeline.listing(request.principal)
        latest, result = self._latest
        if latest is not listing:
            result = self._listed(listing)
            if len(result) <= LIST_BYTES:
                self._latest = listing, result
        self._on_listed(request.principal, len(listing))
        extensions = request.scope.get("extensions") or _NO_EXTENSIONS
        answer = None if request.is_foreign else extensions.get(ANSWER)
        exchange = Exchange(request.send, answer, anyio.current_time())
        await exchange.finish(200, encoded_body(request.message.id, self._meta, result))

    def _listed(self, listing: tuple[Mapping[str, Any], ...]) -> bytes:
        known = self._rendered
        if len(known) > 2 * len(listing) + ENTRIES_KEPT:
            known.clear()  # most are of catalogs that are gone
        pieces: list[bytes] = []
        for entry in listing:
            found = known.get(id(entry))
            if found is None:  # the entry is kept beside its JSON, so that its id stays its own
                found = known[id(entry)] = (entry, orjson.dumps(dict(entry), default=dict))
            pieces.append(found[1])
        return b'{"tools":[%s],"ttlMs":0,"cacheScope":"private"}' % b",".join(pieces)

    async def answer(self, request: Request) -> None:
        """Make the call and answer it. On the client's leaving: the call is cancelled and nothing is sent.

        Raises InsufficientScope and Unauthenticated for the gate to challenge, unless the answer has become a stream.
        """
        message, extensions = request.message, request.scope.get("extensions") or _NO_EXTENSIONS
        call = build_call(
            message.params,
            principal=request.principal,
            face=request.face,
            now_ms=self._clock.now_ms(),
            request_id=message.id,
            trace_parent=request.trace_parent,
        )
        answer = None if request.is_foreign else extensions.get(ANSWER)
        exchange = Exchange(request.send, answer, anyio.current_time())
        hangup: Hangup | None = extensions.get(HANGUP)
        if hangup is None:
            await self._watched_by_task(exchange, call, request)
        else:
            hangup.task = asyncio.current_task()
            call.in_scope = False
            await self.run(exchange, call, message.id, hangup, stream=request.accepts[1])

    async def run(
        self, exchange: Exchange, call: Call, request_id: RequestId | None, hangup: Hangup, *, stream: bool
    ) -> None:
        """As `answer`, for a call that is made. hangup.task: whose work this is, the current one. stream: whether the
        answer may be one."""
        task = hangup.task
        assert task is not None, "requests are answered in tasks"  # noqa: S101
        if stream:
            self._quiet.add(exchange)
        try:
            if hangup.gone:
                return
            try:
                result: Answer | dict[str, Any] = await self._pipeline.perform(call)
            except Exception as error:  # noqa: BLE001 – `ended_otherwise` judges it
                ended = await self._ended_otherwise(exchange, call, request_id, error)
            else:
                ended = 200, self._body(result, call, request_id)
        except asyncio.CancelledError:
            if not hangup.gone or task.uncancel():  # the server's end, perhaps in the same moment
                raise
            return
        finally:
            hangup.task = None
            self._quiet.discard(exchange)
        if ended[0] != 200 or not exchange.at_once(ended[1]):
            await exchange.finish(*ended)

    async def keep_alive(self) -> None:
        """Ping responses that have been silent too long, for ever."""
        async with anyio.create_task_group() as pings:  # a client that does not read must not delay the others'
            while True:
                await anyio.sleep(LOOK_EVERY_S)
                before = anyio.current_time() - QUIET_S
                for exchange in list(self._quiet):
                    if exchange.last_byte <= before:
                        pings.start_soon(exchange.ping)

    async def _watched_by_task(self, exchange: Exchange, call: Call, request: Request) -> None:
        """`run`, where no connection tells of the client's leaving."""
        ended: list[InsufficientScope | Unauthenticated] = []
        hangup = Hangup()

        async def work() -> None:
            hangup.task = asyncio.current_task()
            try:
                await self.run(exchange, call, request.message.id, hangup, stream=request.accepts[1])
            except (InsufficientScope, Unauthenticated) as challenge:  # out of the group, where it would be wrapped
                ended.append(challenge)
            working.cancel_scope.cancel()

        async with anyio.create_task_group() as working:
            working.start_soon(work)
            while (await request.receive())["type"] != "http.disconnect":
                pass
            hangup.tell()
        if ended:
            raise ended[0]

    async def _ended_otherwise(
        self, exchange: Exchange, call: Call, request_id: RequestId | None, error: Exception
    ) -> tuple[int, bytes]:
        """Status and body for a call of which the pipeline has raised this."""
        try:
            result = await ended_otherwise(self._house, call, error)
        except UnknownTool:
            return 400, error_body(request_id, INVALID_PARAMS, unknown_tool(call.name))
        except PROTOCOL_ERRORS as refusal:
            code, said, data = protocol_error(refusal, call) or (INVALID_PARAMS, refusal.sentence, None)
            return 400, error_body(request_id, code, said, data)
        except (InsufficientScope, Unauthenticated) as challenge:
            if not exchange.is_stream:
                raise
            result = as_result(challenge, call.id)
        return 200, self._body(result, call, request_id)

    def _body(self, result: Answer | dict[str, Any], call: Call, request_id: RequestId | None) -> bytes:
        try:
            if isinstance(result, Answer):
                if "resultType" not in result.more and (bare := result.bare()) is not None:
                    meta = result.meta
                    told = orjson.dumps({**meta, SERVER_KEY: self._server_info}, default=dict) if meta else self._meta
                    return encoded_body(request_id, told, bare)
                result = as_told(self._house, result, call)
            return result_body(request_id, modern_result(result, self._server_info))
        except TypeError:
            log.error("an answer cannot be written as JSON", call_id=call.id, tool=call.name)
            failure = Broken("The backend's answer cannot be written as JSON.", next_step="It may have been done.")
            return result_body(request_id, modern_result(as_result(failure, call.id), self._server_info))

    def mirrors_arguments(self, name: str) -> bool:
        """Whether this tool's arguments are mirrored in `Mcp-Param-*` headers, worked out once per schema."""
        schema = self._pipeline.input_schema(name)
        if schema is None:
            return False
        known = self._mirrors.get(name)
        if known is None or known[0] is not schema:
            uses = b'"x-mcp-header"' in orjson.dumps(schema, default=dict)  # views of mappings
            known = self._mirrors[name] = (schema, uses)
        return known[1]


def is_plain_call(params: Mapping[str, Any], json: bool, stream: bool) -> bool:
    """Whether these params of a modern `tools/call`, with a `_meta`, have nothing that is the SDK's to do.

    json, stream: what may be answered.
    """
    if not json or not params.keys() <= _PLAIN_PARAMS:
        return False
    if not isinstance(params.get("name"), str) or not isinstance(params.get("arguments", {}), dict):
        return False
    return is_plain_meta(params["_meta"], stream)


def is_plain_meta(meta: Mapping[str, Any], stream: bool) -> bool:
    """The same of a `_meta` alone."""
    return not (stream and "progressToken" in meta) and _is_plain(meta)


def _is_plain(meta: Mapping[str, Any]) -> bool:
    """Whether the reserved keys have the usual shape; any other is the SDK's to judge and to answer."""
    for key, value in meta.items():
        if key in (VERSION_KEY, "progressToken"):
            continue
        if key == CAPABILITIES_KEY:
            if not _all_are(dict, value):
                return False
        elif key == CLIENT_KEY:
            if not _all_are(str, value) or not {"name", "version"} <= value.keys():
                return False
        elif key.startswith("io.modelcontextprotocol/"):
            return False
    return True


def _all_are(kind: type, value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(entry, kind) for entry in cast("dict[str, Any]", value).values())
