"""The gate before everything agents send over HTTP: what is not a well-formed, known caller's request stops here.

In this order: Host, Origin, headers, method, identity, body, JSON, envelope, agreement of header and body. Identity
comes before the first byte of the body is looked at; a request refused here has cost nothing but its headers or at
most one parse. What passes is either answered at once (`direct`) or goes on to the SDK with its body and its principal,
which lies in the ASGI scope under PRINCIPAL. Nothing behind the gate authenticates, and nothing gets behind it but
through it.

The era is decided by MCP-Protocol-Version alone. For handshake-era calls the body is what is authorised, whatever
`Mcp-Name` says.

What must not live here: what the SDK does well (sessions, streams, dispatch), and the deadlines of bytes, which are the
connection's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

from broker.errors import (
    BrokerError,
    InsufficientScope,
    Malformed,
    Overloaded,
    RecordUnavailable,
    Unauthenticated,
    UnknownTool,
)
from broker.faces.mcp import agreement, parts
from broker.faces.mcp import headers as wire
from broker.faces.mcp.bodies import Body, Budget
from broker.faces.mcp.calls import PROTOCOL_ERRORS, build_call, perform
from broker.faces.mcp.direct import Direct
from broker.faces.mcp.ports import House
from broker.faces.mcp.replies import CLOSE, Stop, send_body
from broker.faces.mcp.request import FACE, OUTCOME, PRINCIPAL, App, Receive, Request, Scope, Send
from broker.faces.mcp.shortcut import Shortcut
from broker.faces.mcp.standing import Standing
from broker.faces.mcp.strict import INVALID_REQUEST, Message, RequestId, read_message
from broker.model.address import as_called
from broker.model.principal import Principal

METHODS: Mapping[str, tuple[str, ...]] = {
    "/mcp": ("POST", "GET", "DELETE"),
    "/sse": ("GET",),
    "/messages/": ("POST",),
}
RESOURCE: Mapping[str, str] = {"/mcp": "/mcp", "/sse": "/sse", "/messages/": "/sse"}

_CORS = (
    (b"access-control-allow-methods", b"GET, POST, DELETE"),
    (
        b"access-control-allow-headers",
        b"authorization, content-type, accept, mcp-protocol-version, mcp-session-id, mcp-method, mcp-name",
    ),
    (b"access-control-max-age", b"600"),
)
_EXPOSED = (b"access-control-expose-headers", b"mcp-session-id, www-authenticate")


class Gate:
    """sdk: where requests go on to, by path. sessions: how many are open. One gate serves all endpoints of a broker."""

    def __init__(
        self,
        sdk: Mapping[str, App],
        house: House,
        *,
        direct: Direct,
        standing: Standing,
        places: wire.Places,
        sessions: Callable[[], int],
    ) -> None:
        self._sdk = sdk
        self._house = house
        self._limits = house.limits
        self._direct = direct
        self._standing = standing
        self._places = places
        self._sessions = sessions
        self._in_use: set[tuple[str, bytes, str]] = set()  # handshake-era requests being answered
        self.budget = Budget(house.limits.bytes_in_flight)
        self._closing = False
        self.shortcut = Shortcut(
            direct=direct,
            limits=house.limits,
            budget=self.budget,
            remembered=house.remembered,
            challenge=self._challenge_known,
            now_ms=house.clock.now_ms,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """scope: of an HTTP request whose raw path is exactly one of METHODS."""
        headers, twice = wire.read_headers(scope["headers"])
        request = Request(scope["path"], headers, scope, receive, send)
        try:
            if await self._is_preflight(request):
                return
            self._check_head(request, twice)
            request.principal = scope[PRINCIPAL] = await self._who(request)
            scope[FACE] = request.face
            if scope["method"] == "POST":
                await self._post(request)
            else:
                await self._stand(request)
        except Stop as stop:
            await self._stopped(request, stop)

    def close(self) -> None:
        """Take nothing new."""
        self._closing = self.shortcut.is_closing = True

    async def _stopped(self, request: Request, stop: Stop) -> None:
        if stop.kind:
            self._house.on_refused(stop.kind)
        await send_body(request.send, stop.status, stop.body, stop.headers)

    # ------------------------------------------------------------------------------------------ before the identity

    async def _is_preflight(self, request: Request) -> bool:
        """Judge Host and Origin; answer a browser's question whether it may ask."""
        headers, server = request.headers, request.scope.get("server")
        if status := self._places.host_status(headers, server):
            raise Stop("foreign_host", "Refused: the Host header does not name this broker.", status=status)
        origin = headers.get(b"origin")
        if origin is None:
            return False
        if not self._places.origin_allowed(origin, server):
            raise Stop("foreign_origin", "Refused: this web origin may not call the broker.", status=403)
        request.send = _with_cors(request.send, origin)
        request.is_foreign = True
        if request.scope["method"] != "OPTIONS":
            return False
        await request.send({"type": "http.response.start", "status": 204, "headers": list(_CORS)})
        await request.send({"type": "http.response.body", "body": b""})
        return True

    def _check_head(self, request: Request, twice: bytes) -> None:
        if twice:
            code = agreement.HEADER_MISMATCH if twice.startswith(b"mcp-") else 0
            raise Stop(
                "bad_header", f"Refused: the header {twice.decode('latin-1')} came twice.", status=400, code=code
            )
        allowed = METHODS[request.path]
        if request.scope["method"] not in allowed:
            allow = (b"allow", ", ".join(allowed).encode())
            raise Stop("bad_method", "Refused: this method is not served here.", status=405, headers=[allow])
        if wire.query_has(request.scope["query_string"], "access_token"):
            sentence = "Refused: a token must not stand in the URL; send it as Authorization: Bearer."
            raise self._unauthenticated(request, sentence, kind="token_in_query")
        if self._closing:
            sentence = "Refused: the broker is shutting down. Nothing was done."
            raise Stop("overloaded", sentence, status=503, headers=[CLOSE])

    async def _who(self, request: Request) -> Principal:
        credential = wire.bearer(request.headers)
        if credential == "":
            sentence = "Refused: the Authorization header is not one bearer token."
            raise self._unauthenticated(request, sentence, error="invalid_token")
        try:
            return await self._house.authenticate(credential)
        except Unauthenticated as refusal:
            error = "" if credential is None else "invalid_token"  # RFC 6750 section 3.1: no error without a token
            raise self._unauthenticated(request, refusal.sentence, error=error) from None
        except RecordUnavailable as fault:  # who calls cannot be found out now: nobody gets in
            raise Stop("overloaded", fault.sentence, status=503, headers=[(b"retry-after", b"1")]) from None

    def _unauthenticated(
        self, request: Request, sentence: str, *, kind: str = "unauthenticated", error: str = ""
    ) -> Stop:
        return Stop(
            kind,
            sentence,
            status=401,
            data={"code": "unauthenticated", "effect": "none"},
            headers=[self._challenge(request, error, sentence if error else "")],
            request_id=request.message.id,
        )

    def _challenge(
        self, request: Request, error: str, description: str, scopes: Sequence[str] = ()
    ) -> tuple[bytes, bytes]:
        """The WWW-Authenticate line, naming the metadata of the endpoint as the client calls it."""
        base = as_called(self._house.base_url(), request.headers.get(b"host", b"").decode("latin-1"))
        value = self._house.challenge(base, RESOURCE[request.path], error=error, description=description, scopes=scopes)
        return b"www-authenticate", value.encode("latin-1", "replace")

    # ------------------------------------------------------------------------------------------------- a posted body

    async def _post(self, request: Request) -> None:
        status, why = wire.json_content(request.headers)
        if status:
            raise Stop("bad_media_type", f"Refused: {why}.", status=status)
        body = Body(self.budget, self._limits.body_bytes)
        try:
            content = await self._content(body, request)
            if content is None:
                self._house.on_refused("slow_body")
                return
            request.message = self._message(content)
            request.replay(content)
            if request.path != "/mcp":
                await self._message_of_stream(request)
            elif agreement.is_modern(request.headers):
                await self._modern(request)
            else:
                await self._handshake(request)
        finally:
            body.release()

    async def _content(self, body: Body, request: Request) -> bytes | None:
        try:
            return await body.read(request.headers, request.receive)
        except Malformed as fault:
            raise Stop("too_large", fault.sentence, status=413, headers=[CLOSE], data=fault.facts) from None
        except Overloaded as fault:
            headers = [CLOSE, (b"retry-after", b"1")]
            raise Stop("overloaded", fault.sentence, status=503, headers=headers, data=fault.facts) from None

    def _message(self, content: bytes) -> Message:
        try:
            return read_message(content, self._limits)
        except Malformed as fault:
            code, limit = fault.facts["rpc_code"], fault.facts.get("limit")
            kind = "invalid_request" if code == INVALID_REQUEST else "parse_error"
            raise Stop(kind, fault.sentence, code=code, data={"limit": limit} if limit else None) from None

    async def _modern(self, request: Request) -> None:
        message = request.message
        if message.kind == "response":
            raise Stop("invalid_request", "Refused: clients of this revision send no responses.", code=INVALID_REQUEST)
        is_call = message.kind == "request" and message.method == "tools/call"
        if message.kind == "request":
            _refuse(agreement.disagreement(request.headers, message), message.id)
        if is_call and self._direct.takes(request):
            self.shortcut.learn(request, wire.bearer(request.headers))
            await self._call(request)
            return
        if message.kind == "request" and message.method == "tools/list" and self._direct.lists(request):
            await self._direct.list_tools(request)
            return
        if not all(request.accepts):
            raise Stop("not_acceptable", "Refused: accept application/json and text/event-stream.", status=406)
        if message.kind == "request":
            await self._challenge_scopes(request)
        if message.method == "subscriptions/listen":
            await self._stand(request)
        else:
            await self._go_on(request)

    async def _call(self, request: Request) -> None:
        try:
            await self._direct.answer(request)
        except (InsufficientScope, Unauthenticated) as refusal:
            raise self._challenged(request, refusal) from None

    async def _challenge_known(
        self, headers: Mapping[bytes, bytes], send: Send, request_id: RequestId, refusal: BrokerError
    ) -> None:
        """For the shortcut."""
        message = Message("request", "tools/call", request_id, {}, {})
        request = Request("/mcp", headers, {}, _nothing_more, send, message=message)
        await self._stopped(request, self._challenged(request, refusal))

    async def _handshake(self, request: Request) -> None:
        """A message of a handshake-era session; its answer travels on this very POST."""
        message, session = request.message, request.headers.get(b"mcp-session-id", b"")
        if not session and not (message.kind == "request" and message.method == "initialize"):
            # The SDK would open a session only to refuse this and close it again.
            sentence = "Refused: Missing session ID. Send initialize first, or MCP-Protocol-Version: 2026-07-28."
            raise Stop("no_session", sentence, code=INVALID_REQUEST, request_id=message.id)
        if not session and self._sessions() >= self._limits.sessions:
            sentence = "Refused: too many open sessions (limit: sessions)."
            raise Stop("overloaded", sentence, status=503, request_id=message.id, data={"limit": "sessions"})
        if message.kind != "request" or not session:
            await self._go_on(request)
            return
        # As the SDK keys the streams that answers travel on: 1 and "1" are one.
        use = (request.principal.key, session, str(message.id))
        if use in self._in_use:
            raise Stop("id_in_use", "Refused: a request with this id is being answered.", code=INVALID_REQUEST)
        self._in_use.add(use)
        try:
            await self._challenge_scopes(request)
            await self._go_on(request)
        finally:
            self._in_use.discard(use)

    async def _message_of_stream(self, request: Request) -> None:
        """A message of an HTTP+SSE stream; its answer travels there.

        Mirroring headers are not required in this transport, but one that is there must not lie. Missing scopes are
        answered on the stream, as a tool result: this transport knows no step-up, and a client of it (the SDK's, for
        one) loses the whole session over a POST that is not accepted.
        """
        if agreement.is_modern(request.headers):
            _refuse(agreement.contradiction(request.headers, request.message), request.message.id)
        await self._go_on(request)

    async def _go_on(self, request: Request) -> None:
        await self._sdk[request.path](request.scope, request.receive, request.send)

    # ---------------------------------------------------------------------------------------------------- challenges

    async def _challenge_scopes(self, request: Request) -> None:
        """Refuse a call that lacks scopes with 403, from where a status can still be given.

        The refusal itself is the pipeline's, which records it. When the pipeline ends the call in any other way
        (invalid arguments come first; the catalog may have changed this very moment), the outcome goes along in the
        scope, so that nothing is done twice.
        """
        message, house = request.message, self._house
        if message.method in parts.METHODS:
            await self._challenge_part(request)
        if message.method != "tools/call":
            return
        name = message.params.get("name")
        if not isinstance(name, str) or not house.pipeline.missing_scopes(name, request.principal):
            return
        try:
            call = build_call(
                message.params,
                principal=request.principal,
                face=request.face,
                now_ms=house.clock.now_ms(),
                request_id=message.id,
                trace_parent=request.trace_parent,
            )
            request.scope[OUTCOME] = await perform(house, call)
        except (InsufficientScope, Unauthenticated) as refusal:
            raise self._challenged(request, refusal) from None
        except (UnknownTool, *PROTOCOL_ERRORS) as refusal:
            request.scope[OUTCOME] = refusal
        except Malformed:
            return  # the SDK refuses it in its own words

    async def _challenge_part(self, request: Request) -> None:
        """The same for what is read or got, or completed."""
        message, house = request.message, self._house
        try:
            call = parts.build_part_call(
                message.method,
                message.params,
                principal=request.principal,
                face=request.face,
                now_ms=house.clock.now_ms(),
                request_id=message.id,
                trace_parent=request.trace_parent,
            )
        except Malformed:
            return  # the SDK refuses it in its own words
        if not house.pipeline.lacks_scopes(call):
            return
        try:
            request.scope[OUTCOME] = await parts.perform_part(house, call)
        except (InsufficientScope, Unauthenticated) as refusal:
            raise self._challenged(request, refusal) from None
        except BrokerError as error:
            request.scope[OUTCOME] = error

    def _challenged(self, request: Request, refusal: BrokerError) -> Stop:
        if not isinstance(refusal, InsufficientScope):
            return self._unauthenticated(request, refusal.sentence, error="invalid_token")
        return Stop(
            "",  # a call, and recorded as one
            refusal.sentence,
            status=403,
            data={"code": refusal.code, "effect": refusal.effect, "missing": list(refusal.missing)},
            headers=[self._challenge(request, "insufficient_scope", refusal.sentence, refusal.missing)],
            request_id=request.message.id,
        )

    # ---------------------------------------------------------------------------------------------- standing streams

    async def _stand(self, request: Request) -> None:
        """GET, DELETE and subscriptions/listen: what may stay open as long as its caller keeps its right."""
        headers = request.headers
        if request.path == "/mcp" and not agreement.is_modern(headers) and b"mcp-session-id" not in headers:
            raise Stop("no_session", "Refused: Missing session ID.", code=INVALID_REQUEST)

        async def run(receive: Receive, send: Send) -> None:
            await self._sdk[request.path](request.scope, receive, send)

        if await self._standing.keep(request, wire.bearer(headers), run, answers=request.path == "/sse"):
            self._house.on_refused("stream_ended")


async def _nothing_more() -> MutableMapping[str, Any]:
    return {"type": "http.disconnect"}


def _refuse(differs: agreement.Disagreement | None, request_id: RequestId | None) -> None:
    if differs is not None:
        kind = "unsupported_version" if differs.code == agreement.UNSUPPORTED_VERSION else "header_mismatch"
        raise Stop(kind, differs.message, code=differs.code, data=differs.data, request_id=request_id)


def _with_cors(send: Send, origin: bytes) -> Send:
    """Let scripts of an allowed origin read the answer (Fetch standard, section 3.2)."""

    async def marked(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            lines = [(b"access-control-allow-origin", origin), (b"vary", b"Origin"), _EXPOSED]
            message = {**message, "headers": [*message.get("headers", ()), *lines]}
        await send(message)

    return marked
