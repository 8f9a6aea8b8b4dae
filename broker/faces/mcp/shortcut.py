"""Heads that have come before, byte for byte: a client says the same with each call, and is judged by it once.

A modern `tools/call` of a client differs from its last one in the body and hardly ever in the head, but for the length
of that body and, where the client traces its calls, the `traceparent`. When one has passed the whole gate, what its
head said is kept under the SHA-256 of the rest; a request that begins with those very bytes has the same path, Host,
media types, version, method and tool name, because they were judged when they came first. What can have changed since
is asked again every time: whether the credential still counts, and whether the broker is leaving. Everything of the
body is read and judged as for any other request.

A request that is not all of this, or wrong in any way, is nobody's here: it goes the usual way through the HTTP parser
and the gate, as if nobody had looked. So nothing is ever refused here, and there is one judge.

What is kept has no credential in it: the SHA-256 of one, as `auth` keeps it.

What must not live here: any rule of the gate's; any byte of HTTP written.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from hashlib import sha256
from typing import Any

import orjson

from broker.data import dataclass, field
from broker.errors import BrokerError, InsufficientScope, Malformed, Unauthenticated
from broker.faces.line import PIECE, Line
from broker.faces.mcp.agreement import CAPABILITIES_KEY, MODERN, VERSION_KEY
from broker.faces.mcp.bodies import Budget
from broker.faces.mcp.calls import OWN_META, Declared, declared, made, trace_parent_of
from broker.faces.mcp.direct import Direct, Exchange, is_plain_meta
from broker.faces.mcp.headers import decoded
from broker.faces.mcp.ports import Remembered
from broker.faces.mcp.request import FACE_HTTP, Request, Send
from broker.faces.mcp.strict import JsonLimits, RequestId, is_id, read_json
from broker.model.call import Call
from broker.model.principal import fingerprint

MOST = 1024  # heads; of each a few hundred bytes are kept. Whoever sends ever new ones costs others nothing but time
HEAD_BYTES = 16_384
DECLARED, DECLARED_BYTES = 4, 1024  # of a head, what is remembered of `_meta` that says no more than who the client is
BODY_BYTES = 65_536  # larger ones go the usual way, where they are counted as they come

_LINE = b"POST /mcp HTTP/1.1\r\n"
# What makes a request more than a head and a body of known length, or another one than the next.
_UNFIT = frozenset({b"transfer-encoding", b"expect", b"upgrade", b"origin", b"tracestate", b"baggage"})
_TRACE = b"\r\ntraceparent: "


@dataclass(frozen=True, slots=True)
class Head:
    """What a head said. server: the socket's own address it came to. mark: the credential's fingerprint, b"" for none.
    named: the decoded `Mcp-Name`. accepts: JSON, and an event stream. declared: what the `_meta` of its calls said, by
    its JSON."""

    server: Any
    headers: Mapping[bytes, bytes]  # but the credential
    mark: bytes
    version: str
    named: str
    accepts: tuple[bool, bool]
    declared: dict[bytes, Declared] = field(default_factory=dict[bytes, Declared])


Taken = tuple[Call, RequestId, Head, int]  # the size of its body


class Shortcut:
    """challenge: answers a call whose caller has to do something first. is_closing: the broker is leaving."""

    def __init__(
        self,
        *,
        direct: Direct,
        limits: JsonLimits,
        budget: Budget,
        remembered: Remembered,
        challenge: Callable[[Mapping[bytes, bytes], Send, RequestId, BrokerError], Awaitable[None]],
        now_ms: Callable[[], int],
    ) -> None:
        self._direct = direct
        self._limits = limits
        self._budget = budget
        self._remembered = remembered
        self._challenge = challenge
        self._now_ms = now_ms
        self.is_closing = False
        self._heads: dict[bytes, Head] = {}
        self._traced = False  # some of them have a trace

    def learn(self, request: Request, credential: str | None) -> None:
        """Keep what the head of this call said, which has passed the whole gate, if it came in one piece. Its body may
        have come later, as many clients send it; what came with it was no more than that."""
        headers, piece = request.headers, request.scope.get("extensions", {}).get(PIECE, b"")
        end = piece.find(b"\r\n\r\n") + 4
        trace_parent = headers.get(b"traceparent", b"").decode("latin-1")
        traced = bool(trace_parent)
        told = _told_from_others(piece, end, traced) if piece.startswith(_LINE) and end <= HEAD_BYTES else None
        stays = headers.get(b"connection", b"keep-alive").lower() == b"keep-alive"  # which says what is so anyway
        if told is None or not stays or len(piece) > end + told[1] or not _UNFIT.isdisjoint(headers):
            return
        if trace_parent != told[2]:  # it is none, or not where it can be told from the rest
            return
        mark = fingerprint(credential) if credential else b""
        version, named = headers[b"mcp-protocol-version"].decode(), decoded(headers.get(b"mcp-name"))
        if version not in MODERN or named is None:
            return
        while len(self._heads) >= MOST:
            self._heads.pop(next(iter(self._heads)))
        self._traced = self._traced or traced
        said = {name: value for name, value in headers.items() if name not in (b"authorization", b"traceparent")}
        self._heads[told[0]] = Head(request.scope.get("server"), said, mark, version, named, request.accepts)

    def hold(self, size: int) -> bool:
        """See faces.line.Shortcut. What waits counts as bytes in flight."""
        if size > self._budget.left:
            return False
        self._budget.take(size)
        return True

    def let_go(self, size: int) -> None:
        """See faces.line.Shortcut."""
        self._budget.give(size)

    def __call__(self, data: bytes, server: Any) -> Taken | int | None:
        """The call in these bytes; how many bytes of it are missing; None when it goes the usual way.

        data: what came on a connection with nothing under way. server: the connection's own address. What is given has
        taken its bytes from the budget; `work` gives them back.
        """
        end = data.rfind(b"\r\n\r\n", 0, HEAD_BYTES) + 4  # from behind: a body seldom has an empty line, and is shorter
        if end < 4 or not data.startswith(_LINE):
            return None
        told = _told_from_others(data, end, self._traced)
        if told is None:
            return None
        name, size, trace_parent = told
        head = self._heads.get(name)
        if head is None or head.server != server:
            return None
        if len(data) != end + size:
            return max(0, end + size - len(data)) or None
        principal = self._remembered(head.mark)
        if principal is None or self.is_closing or size > self._budget.left:
            return None
        try:
            read = _plain(read_json(data[end:], self._limits), head, self._limits)
        except Malformed:
            return None
        if read is None or self._direct.mirrors_arguments(head.named):
            return None
        self._budget.left -= size
        request_id, arguments, said = read
        call = made(
            head.named,
            arguments,
            said,
            principal=principal,
            face=FACE_HTTP,
            now_ms=self._now_ms(),
            request_id=request_id,
            trace_parent=trace_parent,
        )
        call.in_scope = False  # its task is the connection's to cancel
        return call, request_id, head, size

    async def work(self, line: Line, taken: Taken | None) -> None:
        """See faces.line.Shortcut."""
        while taken is not None:
            call, request_id, head, size = taken
            line.hangup.task = line.task
            exchange = Exchange(line.send, line.answer, line.now())
            try:
                await self._direct.run(exchange, call, request_id, line.hangup, stream=head.accepts[1])
            except (InsufficientScope, Unauthenticated) as refusal:
                await self._challenge(head.headers, line.send, request_id, refusal)
            except BaseException as fault:  # noqa: BLE001 – the line logs it, and there is nobody else to tell
                line.broke(fault)
                return
            finally:
                self._budget.left += size
            del taken, call, exchange  # a connection at rest holds nothing of what was asked
            taken = await line.next


def _told_from_others(data: bytes, end: int, traced: bool) -> tuple[bytes, int, str] | None:
    """The SHA-256 of the head that ends here, but for what differs from call to call: the length of the body, and the
    `traceparent`, which are given, too. None where the length is not told in the usual way, or is of no body that could
    be taken here. traced: there may be a `traceparent`; what is none, or told in another way, is left in, and "" given.

    A line that begins so is the header and nothing else; were there another of the same name, it would be in the hash.
    """
    at = data.rfind(b"\r\nContent-Length: ", 0, end)
    if at < 0 and (at := data.rfind(b"\r\ncontent-length: ", 0, end)) < 0:
        return None
    at += 18
    after = data.find(b"\r", at, end)
    digits = data[at:after]
    if not digits.isdigit() or digits[0] == 48 or len(digits) > 5 or (size := int(digits)) > BODY_BYTES:
        return None
    rest, trace_parent = data[:at] + data[after:end], ""
    if traced and (at := rest.find(_TRACE) + len(_TRACE)) >= len(_TRACE):
        after = rest.find(b"\r", at)
        trace_parent = trace_parent_of(rest[at:after].decode("latin-1"))
        if trace_parent:
            rest = rest[:at] + rest[after:]
    return sha256(rest).digest(), size, trace_parent


def _plain(raw: Any, head: Head, limits: JsonLimits) -> tuple[RequestId, dict[str, Any], Declared] | None:
    """Id, arguments and what `_meta` declares of a call that agrees with its head, and is plain; None for all else."""
    if raw.__class__ is not dict or len(raw) != 4 or raw.get("jsonrpc") != "2.0" or raw.get("method") != "tools/call":
        return None
    request_id, params = raw.get("id"), raw.get("params")
    if (
        not (request_id.__class__ is int or is_id(request_id, limits))
        or params.__class__ is not dict
        or params.get("name") != head.named
    ):
        return None
    arguments, meta = params.get("arguments", {}), params.get("_meta")
    if arguments.__class__ is not dict or meta.__class__ is not dict or len(params) != 2 + ("arguments" in params):
        return None
    told = orjson.dumps(meta)
    said = head.declared.get(told)
    if said is not None:
        return request_id, arguments, said
    if (
        meta.get(VERSION_KEY) != head.version
        or CAPABILITIES_KEY not in meta
        or not is_plain_meta(meta, head.accepts[1])
    ):
        return None
    said = declared(meta)
    if len(told) <= DECLARED_BYTES and len(head.declared) < DECLARED and meta.keys() <= OWN_META:
        head.declared[told] = said
    return request_id, arguments, said
