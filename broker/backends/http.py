"""HTTP APIs as tools: the manifest's request made once, its answer read strictly.

The broker's headers on each call: `X-Broker-Call-Id` (the call's id), `Idempotency-Key` (the same; of a keyed call the
first attempt's), `traceparent`, `User-Agent`. Nothing of the agent's request is forwarded, because nothing of it is
looked at.

Only idempotent tools are tried again, within the same deadline and under the same key: after a failed connect or one of
the listed statuses. What the caller is told about the effect counts every attempt, not only the last.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self, cast

import anyio
from pydantic import BaseModel, Field, field_validator, model_validator

from broker.backends.address import Origin
from broker.backends.breaker import Breaker
from broker.backends.bulkhead import Bulkhead
from broker.backends.connecting import tls_of
from broker.backends.credential import Credential, header_name, outbound
from broker.backends.decoding import ACCEPT_ENCODING, excerpt, is_json, media_type, strict_json_text
from broker.backends.exchange import Cut, Exchange
from broker.backends.headers import Headers
from broker.backends.placement import (
    RESERVED_HEADERS,
    Placed,
    Placement,
    Placements,
    compile_placements,
    header_fault,
)
from broker.backends.rejection import rejected
from broker.backends.spec import Bytes, Seconds, Section, Tls
from broker.backends.upstream import USER_AGENT, Response, Upstream
from broker.document import section
from broker.errors import AnswerWithheld, BackendError, Broken, BrokerError, TimedOut, Unavailable
from broker.model.answer import Answer
from broker.model.call import Call
from broker.model.sketch import Sketch
from broker.model.tool import Tool
from broker.ports import BackendContext, Health, Offer

LAST_CALLS_S = 5.0  # how long closing waits for calls under way
PAUSE_S = 0.1  # before a second attempt; doubles, with jitter


class Retry(Section):
    """attempts: in all, the first included. statuses: answers worth another attempt. Idempotent tools only."""

    attempts: int = Field(default=2, ge=1, le=5, description="Attempts in all, for idempotent tools only.")
    statuses: list[int] = Field(default=[502, 503], description="HTTP statuses that are tried again.")


class Spec(Section):
    """The `http:` section of a backend."""

    base_url: str = Field(description="Scheme, host, port and path prefix; tools cannot leave it.")
    allow_private: bool = Field(default=False, description="The host is on loopback or in a private network.")
    timeout: Seconds = Field(default=30.0, gt=0, description="Total time of a call, unless the tool allows less.")
    connect_timeout: Seconds = Field(default=3.0, gt=0, description="Time to connect.")
    concurrent: int = Field(default=20, ge=1, le=10_000, description="Calls at a time.")
    queue_timeout: Seconds = Field(default=2.0, ge=0, description="How long a call waits for a free place.")
    retry: Retry = section(Retry, "When a call of an idempotent tool is tried again.")
    response_bytes: Bytes = Field(default=8_388_608, ge=1024, description="Largest answer, compressed and not.")
    headers: dict[str, str] = Field(default={}, description="Constant headers of every request.")
    credential: Credential | None = Field(default=None, description="How the broker identifies itself.")
    tls: Tls = section(Tls, "How the certificate is verified.")

    @model_validator(mode="after")
    def _judged(self) -> Self:
        Origin.parse(self.base_url, allow_private=self.allow_private)
        return self

    @field_validator("headers")
    @classmethod
    def _constant(cls, headers: dict[str, str]) -> dict[str, str]:
        for name, value in headers.items():
            if name.lower() in RESERVED_HEADERS - {"user-agent"} or not name.replace("-", "").isalnum():
                raise ValueError(f"{name!r} is not for manifests; credentials belong in `credential`")
            if fault := header_fault(value):
                raise ValueError(f"the value of {name} {fault}")
        return headers

    @property
    def origin(self) -> Origin:
        """Where every request of this backend goes, and nowhere else."""
        return Origin.parse(self.base_url, allow_private=self.allow_private)


class Action(Section):
    """The `http:` section of a tool."""

    method: Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"] = Field(
        default="GET", description="The HTTP method."
    )
    path: str = Field(description="Path under base_url; {name} is one encoded segment from an argument.")
    query: dict[str, Placement] = Field(
        default={}, description="Query parameters: an argument's name, {arg} or {const}."
    )
    headers: dict[str, Placement] = Field(default={}, description="Headers: an argument's name, {arg} or {const}.")
    body: Any = Field(default=None, description="JSON body: nested mappings of placements, or {arg: name}.")


class HttpBackend:
    kind = "http"

    def __init__(self, name: str, spec: Spec, context: BackendContext) -> None:
        self.name = name
        self._spec = spec
        self._timeout_s = spec.timeout
        self._context = context
        self._origin = spec.origin
        self._places = Bulkhead(name, places=spec.concurrent, wait_s=spec.queue_timeout)
        self._breaker = Breaker(name, anyio.current_time)
        self._state: Literal["starting", "up", "down"] = "starting"
        self._detail = ""
        self._since_ms = context.clock.now_ms()
        self._upstream: Upstream | None = None
        self._headers = Headers(
            {"Accept": "application/json, text/*", "Accept-Encoding": ACCEPT_ENCODING, "User-Agent": USER_AGENT}
            | spec.headers
        )
        self._closed = False
        self._auth = None

    async def open(self) -> None:
        """Nothing is sent: an API is asked when it is called. TLS files that cannot be used show in `health`."""
        try:
            tls = None
            if self._origin.scheme == "https" or (self._spec.credential and self._spec.credential.oauth):
                tls = await anyio.to_thread.run_sync(tls_of, self._spec.tls, self._context.directory)
        except OSError as error:  # ssl.SSLError is one
            self._become("down", f"its TLS files cannot be used: {error.strerror or 'not PEM'}")
            return
        self._auth = outbound(self.name, self._spec.credential, self._context.secrets, tls)
        self._upstream = Upstream(
            f"Backend {self.name!r}",
            self._origin,
            allow_private=self._spec.allow_private,
            cap=self._spec.response_bytes,
            connections=None,  # as many as there are calls
            connect_s=self._spec.connect_timeout,
            tls=tls,
        )
        self._become("up", "")

    def sketch(self, tool: Tool, arguments: Mapping[str, Any], call: Call) -> Sketch:
        """See ports.Backend."""
        placed = cast("Placements", tool.action).place(arguments)
        credential = header_name(self._spec.credential)
        headers = self._headers.of(placed, call, (credential, "") if credential else None)
        return Sketch(
            method=placed.method,
            target=self._origin.url.removesuffix(self._origin.prefix) + self._target(placed),
            headers=tuple(name.decode() for name, _ in headers.values()),
            body=(placed.body or b"").decode(),
        )

    def _become(self, state: Literal["up", "down"], detail: str) -> None:
        self._state, self._detail, self._since_ms = state, detail, self._context.clock.now_ms()
        self._context.offer_changed(self.name)

    async def call(self, tool: Tool, arguments: Mapping[str, Any], call: Call) -> Answer:
        """See ports.Backend. Raises InvalidArguments (effect none) for a value its place cannot carry, too.

        The connection keeps the deadline (upstream.py): a scope of cancellation would cost more than all else here.
        """
        upstream = self._upstream
        if upstream is None or self._closed:
            raise Unavailable(f"Backend {self.name!r} is closed or cannot be used ({self._detail}). Nothing was sent.")
        placements: Any = tool.action
        placed = placements.place(arguments)
        timeout_s = min(tool.timeout_s, self._timeout_s)
        deadline = upstream.now() + timeout_s
        repeatable, left = tool.idempotent or tool.effect == "read", False  # left: a byte of an earlier attempt
        most, pause_s = (self._spec.retry.attempts if repeatable else 1), PAUSE_S
        exchange = _attempt(deadline, repeatable)
        if not self._places.take():
            await self._places.wait(deadline)
        try:
            while True:
                most -= 1
                try:
                    return await self._once(upstream, placed, call, exchange)
                except TimedOut:
                    raise TimeoutError from None
                except BackendError as error:
                    wait_s = error.facts.get("retry_after_ms", 0) / 1000 or pause_s * random.uniform(0.5, 1.5)  # noqa: S311 – jitter
                    late = anyio.current_time() + wait_s >= deadline
                    if most <= 0 or late or not self._worth_again(error):
                        if left and error.effect == "none":
                            error.effect = "unknown"
                        raise error from None
                left = left or exchange.left
                exchange = _attempt(deadline, repeatable)
                await anyio.sleep(wait_s)
                pause_s *= 2
        except TimeoutError:
            exchange.left = exchange.left or left
            raise exchange.overdue(self.name, timeout_s) from None
        finally:
            self._places.give_back()

    def _worth_again(self, error: BackendError) -> bool:
        if isinstance(error, Unavailable):
            return not self._breaker.reason
        return error.facts.get("http_status") in self._spec.retry.statuses

    async def _once(self, upstream: Upstream, placed: Placed, call: Call, exchange: Exchange) -> Answer:
        """One attempt: the request, its answer read, the breaker told."""
        breaker = self._breaker
        if breaker.reason:
            breaker.enter()
        told = False
        try:
            credential = None
            if self._auth is not None:
                credential = self._auth.at_once() or await exchange.within(self._auth.header())
            lines = self._headers.lines(placed, call, credential)
            response = await upstream.ask(placed.method, self._target(placed), lines, placed.body, exchange)
            body = response.whole() if response.status < 300 else None
            if body is None:
                body = await self._body(response)
            if response.status == 401 and self._auth is not None and credential is not None:
                again = await exchange.within(self._auth.renewed(credential[1]))
                if again is not None:
                    lines = self._headers.lines(placed, call, again)
                    response = await upstream.ask(placed.method, self._target(placed), lines, placed.body, exchange)
                    body = await self._body(response)
            answer = self._read(response, body)
            told = True
            if breaker.failures:
                self._reached()
            return answer
        except (Cut, BrokerError) as raised:
            error = raised.error if isinstance(raised, Cut) else raised
            if isinstance(error, Unavailable):
                told = True
                self._unreached(str(error.facts.get("reason", error.message)))
            elif not isinstance(error, TimedOut):  # then nobody knows whether it is there
                told = True
                self._reached()
            raise error from None
        finally:
            if not told and not exchange.left and anyio.current_time() >= exchange.deadline:
                self._unreached("no connection in time")
            elif not told:
                breaker.left()

    def _reached(self) -> None:
        was_open = bool(self._breaker.reason)
        self._breaker.succeeded()
        if was_open:
            self._become("up", "")

    def _unreached(self, reason: str) -> None:
        was_open = bool(self._breaker.reason)
        self._breaker.failed(reason)
        if not was_open and self._breaker.reason:
            self._since_ms = self._context.clock.now_ms()
            self._context.offer_changed(self.name)

    def _target(self, placed: Placed) -> str:
        return (self._origin.prefix + placed.target) or "/"

    async def _body(self, response: Response) -> bytes:
        """All of it, up to the cap; of an error answer that is cut off, nothing: its status already says it."""
        try:
            return await response.read()
        except Cut:
            if response.status >= 300:
                return b""
            raise

    # ------------------------------------------------------------------------------------------------------- answers

    def _read(self, response: Response, body: bytes) -> Answer:
        status = response.status
        kind, charset = media_type(response.media_type)
        if not 200 <= status < 600:
            raise Broken(f"Backend {self.name!r} answered HTTP {status}, which is no answer.")
        if status >= 300:
            masked = self._auth.masked if self._auth else ()
            words = excerpt(body, response.header(b"content-type"), masked)
            waits = {"retry-after": response.header(b"retry-after")}
            raise rejected(self.name, status, waits, words, self._context.clock.now_ms())
        word = f"HTTP {status}"
        if not body:
            return _text(f"done ({word})", word)
        if is_json(kind):
            try:
                value, text = strict_json_text(body)
            except ValueError as error:
                raise self._withheld(status, body, f"is not the JSON it says it is ({error})") from None
            return Answer.of_json(value, text, status=word)
        if kind.startswith("text/") and kind != "text/html":
            return _text(self._decoded(status, body, charset), word)
        shown = kind or "no content type"
        raise self._withheld(status, body, f"is {shown}, where JSON or plain text was expected")

    def _decoded(self, status: int, body: bytes, charset: str) -> str:
        codec = {"": "utf-8", "utf8": "utf-8", "us-ascii": "ascii", "iso-8859-1": "latin-1"}.get(charset, charset)
        try:
            if codec not in ("utf-8", "ascii", "latin-1"):
                raise ValueError
            return body.decode(codec)
        except ValueError:
            raise self._withheld(status, body, "is not text in the charset it names") from None

    def _withheld(self, status: int, body: bytes, why: str) -> AnswerWithheld:
        return AnswerWithheld(
            f"Backend {self.name!r} did what was asked (HTTP {status}), but its answer {why}.",
            next_step="Do not send it again; ask the tool's owner.",
            http_status=status,
            body_digest=f"sha256:{hashlib.sha256(body).hexdigest()}",
        )

    # ------------------------------------------------------------------------------------------------------- the rest

    async def aclose(self) -> None:
        """See ports.Backend. Twice is harmless."""
        if self._closed:
            return
        self._closed = True
        self._become("down", "closed")
        with anyio.move_on_after(LAST_CALLS_S):
            await self._places.drain()
        if self._upstream is not None:
            await self._upstream.aclose()
        if self._auth is not None:
            await self._auth.aclose()

    @property
    def health(self) -> Health:
        if self._state == "up" and self._breaker.reason:
            return Health("down", self._breaker.reason, self._since_ms)
        return Health(self._state, self._detail, self._since_ms)

    @property
    def offer(self) -> Offer | None:
        return None


def _attempt(deadline: float, repeatable: bool) -> Exchange:
    exchange = Exchange(deadline)
    exchange.repeatable, exchange.is_exact = repeatable, True
    return exchange


def _text(text: str, status: str) -> Answer:
    return Answer(content=({"type": "text", "text": text},), status=status)


class HttpKind:
    name = "http"
    Spec: type[BaseModel] = Spec
    Action: type[BaseModel] | None = Action

    def compile(self, action: Any, input_schema: Mapping[str, Any], injected: Sequence[str]) -> Placements:
        """See ports.BackendKind."""
        return compile_placements(
            method=action.method,
            path=action.path,
            query=action.query,
            headers=action.headers,
            body=action.body,
            input_schema=input_schema,
            injected=injected,
        )

    def compile_import(self, entry: Mapping[str, Any]) -> object:
        """Raises ValueError: an HTTP API has no list of tools."""
        raise ValueError(f"an HTTP backend offers no tools to import (asked for {entry.get('name')!r})")

    def build(self, name: str, spec: Any, context: BackendContext) -> HttpBackend:
        return HttpBackend(name, spec, context)


KIND = HttpKind()
