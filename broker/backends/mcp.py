"""Downstream MCP servers as a source of tools, resources and prompts: stdio children, streamable HTTP and SSE, of both
protocol eras.

What they offer comes by `import` documents; a call is relayed raw, so that what the broker does not know is not lost.
What the agent said about itself stays here: reserved `_meta`, its capabilities and its token are never passed on; the
call's id goes along as `dev.broker/callId` (and as `Idempotency-Key` where there are headers), trace context as it
came.

What a server asks back (elicitation, sampling, roots) goes to the caller, as far as that one declared it; over which
connection, and in whose rounds, is `mcp_routes`.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self, cast

import anyio
import orjson
from pydantic import BaseModel, Field, field_validator, model_validator

from broker.backends.address import Origin
from broker.backends.bulkhead import Bulkhead
from broker.backends.credential import Credential, header_name
from broker.backends.decoding import short, storable
from broker.backends.mcp_asking import questions
from broker.backends.mcp_part import fault_of, natural_uri, renamed, request_of
from broker.backends.spec import REFERENCE, Bytes, Seconds, Section, Tls
from broker.data import dataclass
from broker.document import section
from broker.errors import AnswerWithheld, InvalidArguments, Unavailable
from broker.model.answer import Answer
from broker.model.back import INPUT_REQUIRED, beyond, relayed
from broker.model.call import Call
from broker.model.part import Part
from broker.model.sketch import Sketch
from broker.model.task import EXTENSION, TASK
from broker.model.tool import Tool
from broker.ports import BackendContext, Health, Offer

if TYPE_CHECKING:
    from broker.backends.mcp_link import Link
    from broker.backends.mcp_modern import Progress
    from broker.backends.mcp_routes import Routes

LAST_CALLS_S = 5.0
OWN_IDLE_S = 600.0  # an agent's own connection is left when unused for this long; its next call makes it anew
OWN_PREFIX = "dev.broker"
TASK_ID_CHARACTERS = 1_024
CALL_ID_META = f"{OWN_PREFIX}/callId"
_RESERVED_META = frozenset({"progressToken"})


class Spec(Section):
    """The `mcp:` section of a backend: a command or a URL."""

    command: list[str] = Field(default=[], description="stdio: the program and its arguments; no shell.")
    env: dict[str, str] = Field(default={}, description="Added to a minimal environment; secrets by reference.")
    cwd: str = Field(default=".", description="Where it runs, relative to the settings file.")
    url: str = Field(default="", description="HTTP: the server's endpoint.")
    transport: Literal["streamable-http", "sse"] = Field(
        default="streamable-http", description="How the URL is spoken to."
    )
    allow_private: bool = Field(default=False, description="The host is on loopback or in a private network.")
    credential: Credential | None = Field(default=None, description="How the broker identifies itself.")
    tls: Tls = section(Tls, "How the certificate is verified.")
    connect_timeout: Seconds = Field(default=3.0, gt=0, description="Time to connect.")
    timeout: Seconds = Field(default=30.0, gt=0, description="Total time of a call, unless the tool allows less.")
    start_timeout: Seconds = Field(default=15.0, gt=0, description="Time to start, negotiate and list the tools.")
    concurrent: int = Field(default=10, ge=1, le=10_000, description="Calls at a time.")
    queue_timeout: Seconds = Field(default=2.0, ge=0, description="How long a call waits for a free place.")
    idle_stop: Seconds = Field(default=0.0, ge=0, description="Stop it when unused for this long; 0 = never.")
    sessions: int = Field(
        default=16,
        ge=1,
        le=1000,
        description="How many agents may have a session of their own with it, so that it can ask them.",
    )
    response_bytes: Bytes = Field(default=8_388_608, ge=1024, description="Largest answer, compressed and not.")
    max_tools: int = Field(
        default=1000,
        ge=1,
        le=100_000,
        description="How many of its tools are read; of its resources and prompts as well.",
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if bool(self.command) == bool(self.url):
            raise ValueError("an MCP backend has either `command` (stdio) or `url` (HTTP)")
        http_only = {"transport", "allow_private", "credential", "tls", "connect_timeout"} & self.model_fields_set
        stdio_only = {"env", "cwd"} & self.model_fields_set
        if unfit := sorted(http_only if self.command else stdio_only):
            raise ValueError(f"{unfit[0]!r} belongs to {'`url`' if self.command else '`command`'}, which is not there")
        if self.url:
            Origin.parse(self.url, allow_private=self.allow_private)
        return self

    @field_validator("command")
    @classmethod
    def _argv(cls, command: list[str]) -> list[str]:
        if command and not command[0].strip():
            raise ValueError("the first item of `command` is the program to run")
        if any("\0" in part for part in command):
            raise ValueError("an argument has a NUL character")
        if any(REFERENCE.search(part) for part in command):
            raise ValueError("arguments are visible to every process of the machine; pass secrets in `env`")
        return command

    @field_validator("env")
    @classmethod
    def _environment(cls, env: dict[str, str]) -> dict[str, str]:
        for name, value in env.items():
            if not name or "=" in name or "\0" in name + value:
                raise ValueError(f"{name!r} is not an environment variable")
        return env


@dataclass(frozen=True, slots=True)
class Remote:
    """A tool of a downstream server, by the name it has there."""

    name: str


class McpBackend:
    kind = "mcp"

    def __init__(self, name: str, spec: Spec, context: BackendContext) -> None:
        self.name = name
        self._spec = spec
        self._context = context
        self._places = Bulkhead(name, places=spec.concurrent, wait_s=spec.queue_timeout)
        self._link: Link | None = None
        self._routes: Routes | None = None
        self._closed = False
        self._since_ms = context.clock.now_ms()
        self._carriage: Any = None
        self._errand: Any = None
        self._fault_in: Any = None

    async def open(self) -> None:
        """Start the link; its task runs in `context.tasks` until `aclose`."""
        # Imported here: the SDK is most of a broker's start-up, and only brokers with MCP backends pay for it.
        from broker.backends.mcp_carriage import carriage
        from broker.backends.mcp_routes import Errand, Routes
        from broker.backends.mcp_shape import result_fault

        self._errand, self._fault_in = Errand, result_fault
        self._carriage = carriage(self.name, self._spec, self._context)
        self._link = self._linked(idle_s=self._spec.idle_stop, on_change=self._changed, on_updated=self._updated)
        tasks = self._context.tasks
        self._routes = Routes(self.name, self._link, self._own, tasks, most=self._spec.sessions)
        tasks.start_soon(self._link.run)

    def _changed(self) -> None:
        self._context.offer_changed(self.name)

    def _updated(self, uri: str) -> None:
        self._context.resource_updated(self.name, uri)

    def _own(self, declared: Mapping[str, Any]) -> Link:
        return self._linked(idle_s=OWN_IDLE_S, declared=declared)

    def _linked(self, **more: Any) -> Link:
        from broker.backends.mcp_link import Link

        return Link(
            self.name,
            self._carriage.carrier,
            label=self._carriage.label,
            clock=self._context.clock,
            start_s=self._spec.start_timeout,
            max_tools=self._spec.max_tools,
            **more,
        )

    async def call(self, tool: Tool, arguments: Mapping[str, Any], call: Call) -> Answer:
        """See ports.Backend. What the server calls an error of the tool is an answer (`is_error`)."""
        if self._link is None or self._routes is None or self._closed:
            raise Unavailable(f"Backend {self.name!r} is closed. Nothing was sent.")
        timeout_s = min(tool.timeout_s, self._spec.timeout)
        deadline = anyio.current_time() + timeout_s
        if isinstance(tool.action, Part) and call.follow:
            uri = natural_uri(tool.action, arguments)
            call.release = await self._link.watch(uri, deadline=deadline, timeout_s=timeout_s)
            return Answer(status="MCP resources/subscribe")
        method, params = _request(tool, arguments, call)
        headers = _headers(call)
        errand = self._errand(
            method,
            params,
            deadline=deadline,
            timeout_s=timeout_s,
            headers=headers,
            progress=_progress(call),
            further=_further(tool, call),
        )
        if not self._places.take():
            await self._places.wait(deadline)
        try:
            result = await self._routes.carry(call, errand)
        finally:
            self._places.give_back()
        kind = result.get("resultType", "complete")
        if INPUT_REQUIRED in (kind, call.inquiry and result.get("status")):
            questions(self.name, result, relayed(call.capabilities))
        if call.inquiry is not None:
            return self._as_it_is(result, f"MCP {method}")
        if kind == INPUT_REQUIRED:
            return self._as_it_is(result, "MCP input required")
        if kind == TASK and call.takes_task and tool.long is None and not isinstance(tool.action, Part):
            return self._begun(result)
        result.pop("resultType", None)
        if isinstance(tool.action, Part):
            return self._part_answer(tool.action, result, kind, method)
        return self._answer(result, kind)

    def sketch(self, tool: Tool, arguments: Mapping[str, Any], call: Call) -> Sketch:
        """See ports.Backend. body: the params of the request; its id and what the protocol's era adds to it (versions,
        capabilities) come with the connection."""
        method, params = _request(tool, arguments, call)
        credential = header_name(self._spec.credential)
        try:
            body = orjson.dumps(params).decode()
        except TypeError:
            raise InvalidArguments("An argument is not valid JSON. Nothing was sent.") from None
        if self._spec.command:
            return Sketch(method, " ".join(self._spec.command), (), body)
        return Sketch(method, self._spec.url, (*_headers(call), *((credential,) if credential else ())), body)

    def _as_it_is(self, result: dict[str, Any], status: str) -> Answer:
        """What is no result of the tool: a question, a task, or how a task stands."""
        if fault := storable(result):
            raise self._withheld(f"is not plain JSON: {fault}")
        meta = _passed_on(result.pop("_meta", None))
        return Answer(meta=meta, more=result, status=status)

    def _begun(self, result: dict[str, Any]) -> Answer:
        """The server goes on by itself and tells the result when it is asked."""
        if not isinstance(result.get("taskId"), str) or not 0 < len(result["taskId"]) <= TASK_ID_CHARACTERS:
            raise self._withheld("is a task without an id")
        return self._as_it_is(result, "MCP task")

    def _part_answer(self, part: Part, result: dict[str, Any], kind: str, method: str) -> Answer:
        fault = fault_of(part, result, completing=method == "completion/complete")
        if kind != "complete" or fault:
            raise self._withheld(fault or "is not a complete result")
        if member := self._fault_in(method, result):
            raise self._withheld(f"is no result: its {member!r} is not as MCP has it")
        if fault := storable(result):
            raise self._withheld(f"is not plain JSON: {fault}")
        meta = _passed_on(result.pop("_meta", None))
        return Answer(meta=meta, more=renamed(part, result), status=f"MCP {method}")

    def _answer(self, result: dict[str, Any], kind: str) -> Answer:
        if kind != "complete":
            raise self._withheld("is not a tool result")
        if member := self._fault_in("tools/call", result):
            raise self._withheld(f"is not a tool result: its {member!r} is not as MCP has it")
        if fault := storable(result):
            raise self._withheld(f"is not plain JSON: {fault}")
        result["_meta"] = _passed_on(result.get("_meta"))
        return Answer.from_result(result, status="MCP error result" if result.get("isError") else "MCP result")

    def _withheld(self, why: str) -> AnswerWithheld:
        return AnswerWithheld(
            f"Backend {self.name!r} answered, but its answer {why}.",
            next_step="Do not send it again; ask the tool's owner.",
        )

    async def aclose(self) -> None:
        """See ports.Backend. Twice is harmless."""
        if self._closed:
            return
        self._closed = True
        if self._link is None:
            return
        with anyio.move_on_after(LAST_CALLS_S):
            await self._places.drain()
        if self._routes is not None:
            await self._routes.aclose()
        await self._link.stop()
        await self._carriage.aclose()

    @property
    def health(self) -> Health:
        if self._link is not None:
            return self._link.health
        return Health("down" if self._closed else "starting", "closed" if self._closed else "", self._since_ms)

    @property
    def offer(self) -> Offer | None:
        return self._link.offer if self._link else None


def _request(tool: Tool, arguments: Mapping[str, Any], call: Call) -> tuple[str, dict[str, Any]]:
    """Method and params."""
    params: dict[str, Any]
    if call.inquiry is not None:
        method, params = call.inquiry.method, {"taskId": call.inquiry.task_id}
        if method == "tasks/update":
            params["inputResponses"] = dict(call.inquiry.responses)
    elif isinstance(tool.action, Part):
        method, params = request_of(tool.action, arguments, call)
    else:
        method, params = "tools/call", {"name": cast("Remote", tool.action).name, "arguments": dict(arguments)}
    params["_meta"] = _meta(call)
    return method, params


def _headers(call: Call) -> dict[str, str]:
    """The broker's own, where there are headers."""
    headers = {"Idempotency-Key": call.downstream_key, "X-Broker-Call-Id": call.id}
    if call.inquiry is not None:
        headers["Mcp-Name"] = _in_header(call.inquiry.task_id)
    if call.trace_parent:
        headers["traceparent"] = call.trace_parent
    return headers


def _in_header(text: str) -> str:
    """A text as the era's headers carry it (2026-07-28, streamable HTTP, "value encoding")."""
    plain = text.isascii() and text.isprintable() and text == text.strip() and not text.startswith("=?")
    return text if plain else f"=?base64?{b64encode(text.encode()).decode()}?="


def _further(tool: Tool, call: Call) -> Mapping[str, Any]:
    """What the caller declares besides what it may be asked. The tasks extension is between it and the broker where the
    broker itself makes a task of the call, and where its own connection has none."""
    if not call.capabilities:
        return call.capabilities
    further = beyond(call.capabilities)
    extensions = further.get("extensions")
    if call.inquiry is None and extensions and (tool.long is not None or not call.takes_task):
        further["extensions"] = {name: said for name, said in extensions.items() if name != EXTENSION}
    return further


def _is_reserved(key: str) -> bool:
    """Keys that belong to the protocol of one hop, or are ours: never copied from one side to the other.

    Source: MCP basic/index, `_meta`: a prefix whose second label is `mcp` or `modelcontextprotocol` is reserved.
    """
    prefix, slash, _ = key.partition("/")
    labels = prefix.split(".")
    return (
        key in _RESERVED_META
        or prefix == OWN_PREFIX
        or (bool(slash) and len(labels) > 1 and labels[1] in ("mcp", "modelcontextprotocol"))
    )


def _passed_on(meta: Any) -> dict[str, Any] | None:
    """A result's `_meta` without what is between that server and the broker."""
    if not isinstance(meta, dict):
        return None
    return {key: value for key, value in cast("dict[str, Any]", meta).items() if not _is_reserved(key)} or None


def _meta(call: Call) -> dict[str, Any]:
    meta = {key: value for key, value in call.meta.items() if not _is_reserved(key)} if call.meta else {}
    meta[CALL_ID_META] = call.id
    if call.trace_parent:
        meta["traceparent"] = call.trace_parent
    return meta


def _progress(call: Call) -> Progress | None:
    """Progress for the caller, one at a time: what comes while one is being passed on is dropped, the next is newer."""
    tell = call.progress
    if tell is None:
        return None
    busy = False

    async def pass_on(progress: float, total: float | None, message: str | None) -> None:
        nonlocal busy
        if not busy:
            busy = True
            try:
                await tell(progress, total, short(message) if message else None)
            finally:
                busy = False

    return pass_on


class McpKind:
    name = "mcp"
    Spec: type[BaseModel] = Spec
    Action: type[BaseModel] | None = None

    def compile(self, action: Any, input_schema: Mapping[str, Any], injected: Sequence[str]) -> object:  # noqa: ARG002
        """Raises ValueError: its tools come by import."""
        raise ValueError("tools of an MCP backend come by `kind: import`, not by `kind: tool`")

    def compile_import(self, entry: Mapping[str, Any]) -> Remote:
        return Remote(str(entry["name"]))

    def build(self, name: str, spec: Any, context: BackendContext) -> McpBackend:
        return McpBackend(name, spec, context)


KIND = McpKind()
