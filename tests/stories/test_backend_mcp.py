"""Downstream MCP servers, real ones, over stdio, streamable HTTP and SSE, in both eras; and what bad ones can do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import mcp_types as types
import pytest
from mcp.server.lowlevel.server import NotificationOptions, Server
from mcp.server.sse import SseServerTransport
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler
from mcp.shared.exceptions import MCPError
from mcp.shared.subscriptions import ToolsListChanged
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from broker.backends.mcp import KIND, Remote
from broker.backends.process import NICE
from broker.errors import AnswerWithheld, Broken, Rejected, TimedOut, Unavailable
from broker.model.answer import Answer
from broker.ports import Backend, Offer
from tests.downstream import House, a_call, ask, house, listener, opened, serving, text_of, tool_with

pytestmark = pytest.mark.anyio
PEER = str(Path(__file__).parents[1] / "stdio_peer.py")


def remote(name: str, timeout_s: float = 10) -> Any:
    return tool_with(Remote(name), timeout_s=timeout_s)


@asynccontextmanager
async def peer(where: House, folder: Path, *modes: str, **spec: Any) -> AsyncGenerator[Backend]:
    """The raw stdio server of tests/stdio_peer.py; its log is `folder`/log."""
    command = [sys.executable, "-I", "-S", PEER, str(folder / "log"), *modes]
    async with opened(where, "mcp", {"command": command, "start_timeout": "5s", **spec}, "peer") as backend:
        await where.until_settled(backend)
        yield backend


def log_of(folder: Path) -> list[str]:
    return (folder / "log").read_text().splitlines()


def offered(backend: Backend) -> Offer:
    assert backend.offer is not None, backend.health
    return backend.offer


def names(backend: Backend) -> list[str]:
    return [entry["name"] for entry in offered(backend).tools]


def is_running(pid: int) -> bool:
    """Whether this process lives; a zombie nobody has collected yet does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


async def until_gone(*pids: int) -> None:
    with anyio.fail_after(10):
        while any(is_running(pid) for pid in pids):
            await anyio.sleep(0.02)


# --------------------------------------------------------------------------------------------------------- real servers


async def test_the_time_server_answers_over_stdio() -> None:
    async with house() as where, opened(where, "mcp", {"command": ["mcp-server-time"]}, "time") as backend:
        await where.until_settled(backend)
        assert backend.health.state == "up"
        assert names(backend) == ["get_current_time", "convert_time"]
        assert offered(backend).protocol_version == "2026-07-28"
        now = await ask(backend, remote("get_current_time"), timezone="Europe/Berlin")
        assert now.structured is not None
        assert now.structured["timezone"] == "Europe/Berlin"
        wrong = await ask(backend, remote("get_current_time"), timezone="Mars/Base")
        assert wrong.is_error


async def test_the_git_server_answers_over_stdio(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    git(tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "first words")
    command = ["mcp-server-git", "--repository", str(tmp_path)]
    async with house() as where, opened(where, "mcp", {"command": command}, "git") as backend:
        await where.until_settled(backend)
        assert "git_status" in names(backend)
        answer = await ask(backend, remote("git_log"), repo_path=str(tmp_path))
        assert "first words" in text_of(answer)


def git(folder: Path, *argv: str) -> None:
    subprocess.run(["git", "-C", str(folder), *argv], check=True)


async def test_a_server_that_cannot_start_is_reported_in_its_own_words(tmp_path: Path) -> None:
    command = ["mcp-server-git", "--repository", str(tmp_path / "nothing")]
    async with house() as where, opened(where, "mcp", {"command": command}, "git") as backend:
        await where.until_settled(backend)
        assert backend.health.state == "down"
        assert backend.health.detail.startswith("mcp-server-git could not start: ")
        assert "nothing does not exist" in backend.health.detail
        with pytest.raises(Unavailable) as error:
            await ask(backend, remote("git_log"))
        assert "does not exist" not in error.value.sentence  # for operators, not for agents


async def test_a_command_that_is_not_there_is_reported_at_once() -> None:
    async with house() as where, opened(where, "mcp", {"command": ["no-such-server", "-x"]}) as backend:
        await where.until_settled(backend)
        assert "the command 'no-such-server' is not found" in backend.health.detail


# ------------------------------------------------------------------------------------------------ SDK servers over HTTP


class Sdk:
    """A real SDK server on a port, in one era or both, over streamable HTTP or SSE."""

    def __init__(self, *, legacy: bool = False) -> None:
        self.legacy = legacy
        self.refuse = 0
        self.requests: list[Mapping[str, str]] = []
        self.cancelled = anyio.Event()
        self.entered = anyio.Event()
        self.tools = ["echo", "progress", "wait", "fail", "ask"]
        self.bus = InMemorySubscriptionBus()
        self.sessions: list[Any] = []
        self.server = self._server()

    def _server(self) -> Server[Any]:
        class Announcing(Server[Any]):
            def create_initialization_options(self, notification_options: Any = None, *rest: Any, **named: Any) -> Any:
                return super().create_initialization_options(NotificationOptions(tools_changed=True), *rest, **named)

        return Announcing(
            "sdk",
            version="9",
            on_list_tools=self.listed,
            on_call_tool=self.called,
            on_subscriptions_listen=ListenHandler(self.bus),
        )

    async def listed(self, ctx: Any, params: Any) -> types.ListToolsResult:
        self.sessions.append(ctx.session)
        mirrored = {"type": "object", "properties": {"region": {"type": "string", "x-mcp-header": "Region"}}}
        return types.ListToolsResult(tools=[types.Tool(name=name, input_schema=mirrored) for name in self.tools])

    async def called(self, ctx: Any, params: types.CallToolRequestParams) -> Any:
        if params.name == "progress":
            await ctx.session.report_progress(1, 2, "half")
        if params.name == "wait":
            self.entered.set()
            try:
                await anyio.sleep(30)
            except anyio.get_cancelled_exc_class():
                self.cancelled.set()
                raise
        if params.name == "fail":
            raise MCPError(-32001, "order\n7 is closed")
        if params.name == "ask":
            return types.InputRequiredResult(input_requests={}, request_state="x")
        return types.CallToolResult(
            content=[types.TextContent(type="text", text=json.dumps(params.arguments))],
            structured_content={"meta": dict[str, Any](ctx.meta or {})},
        )

    async def change(self) -> None:
        self.tools.append("added")
        if self.legacy:
            await self.sessions[-1].send_tool_list_changed()
        else:
            await self.bus.publish(ToolsListChanged())

    def app(self, transport: str) -> Any:
        inner: Any = self.server.streamable_http_app() if transport == "streamable-http" else self._sse()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http":
                await inner(scope, receive, send)
                return
            headers = {key.decode(): value.decode() for key, value in scope["headers"]}
            self.requests.append(headers)
            if self.refuse:
                await Response("go away", self.refuse, {"Retry-After": "7"}, "text/plain")(scope, receive, send)
            elif self.legacy and headers.get("mcp-protocol-version") == "2026-07-28":
                refused = {"jsonrpc": "2.0", "id": None, "error": {"code": -32600, "message": "Bad Request"}}
                await JSONResponse(refused, 400)(scope, receive, send)
            else:
                await inner(scope, receive, send)

        return app

    def _sse(self) -> Starlette:
        sse = SseServerTransport("/messages/")

        async def connect(request: Any) -> Response:
            async with sse.connect_sse(request.scope, request.receive, request._send) as (read, write):
                await self.server.run(read, write, self.server.create_initialization_options())
            return Response()

        return Starlette(routes=[Route("/sse", connect), Mount("/messages/", app=sse.handle_post_message)])


@asynccontextmanager
async def sdk_backend(
    where: House, sdk: Sdk, transport: str = "streamable-http", port: int = 0, **spec: Any
) -> AsyncGenerator[Backend]:
    async with serving(sdk.app(transport), port) as url:
        path = "/mcp" if transport == "streamable-http" else "/sse"
        document = {"url": url + path, "transport": transport, "allow_private": True, "start_timeout": "5s", **spec}
        async with opened(where, "mcp", document, "sdk") as backend:
            await where.until_settled(backend)
            yield backend


SERVERS = [
    pytest.param(False, "streamable-http", "2026-07-28", id="modern-http"),
    pytest.param(True, "streamable-http", "2025-11-25", id="legacy-http"),
    pytest.param(False, "sse", "2026-07-28", id="modern-sse"),
]


@pytest.mark.parametrize(("legacy", "transport", "version"), SERVERS)
async def test_a_server_over_http_is_imported_called_followed_and_cancelled(
    legacy: bool, transport: str, version: str
) -> None:
    sdk = Sdk(legacy=legacy)
    async with house() as where, sdk_backend(where, sdk, transport) as backend:
        assert (backend.health.state, backend.health.detail) == ("up", "")
        assert offered(backend).protocol_version == version
        assert names(backend) == sdk.tools

        seen: list[Any] = []

        async def progress(*step: Any) -> None:
            seen.append(step)

        answer = await ask(backend, remote("progress"), a_call(progress=progress), a=1)
        assert text_of(answer) == '{"a": 1}'
        assert seen == [(1.0, 2.0, "half")]

        with pytest.raises(Rejected, match=r"order 7 is closed \(code -32001\)") as refused:
            await ask(backend, remote("fail"))
        assert "closed" not in refused.value.recorded

        with pytest.raises(TimedOut) as late:
            await ask(backend, remote("wait", timeout_s=0.3))
        assert late.value.effect == "unknown"
        with anyio.fail_after(5):
            await sdk.cancelled.wait()

        await sdk.change()
        await where.until(lambda: "added" in names(backend))


async def test_the_servers_http_requests_carry_our_headers_and_nothing_of_the_agent() -> None:
    sdk = Sdk()
    async with house() as where:
        where.values["${env:TOKEN}"] = "secret-token"
        credential = {"header": "Authorization", "value": "Bearer ${env:TOKEN}"}
        async with sdk_backend(where, sdk, credential=credential) as backend:
            trace = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
            meta = {
                "shop.example/cart": 1,
                "io.modelcontextprotocol/clientInfo": {"name": "agent"},
                "progressToken": "agent's",
                "dev.broker/callId": "forged",
            }
            declared: dict[str, Any] = {"elicitation": {}, "experimental": {"x": {}}}
            call = a_call("id-1", trace_parent=trace, meta=meta, capabilities=declared)
            answer = await ask(backend, remote("echo"), call, region="eu", none=None)
    sent = next(headers for headers in sdk.requests if headers.get("mcp-method") == "tools/call")
    assert sent["authorization"] == "Bearer secret-token"
    assert (sent["idempotency-key"], sent["x-broker-call-id"], sent["traceparent"]) == ("id-1", "id-1", trace)
    assert (sent["mcp-name"], sent["mcp-param-region"]) == ("echo", "eu")
    assert sent["user-agent"].startswith("broker/")
    assert "cookie" not in sent
    assert text_of(answer) == '{"region": "eu", "none": null}'
    assert answer.structured is not None
    got = answer.structured["meta"]
    assert (got["shop.example/cart"], got["dev.broker/callId"], got["traceparent"]) == (1, "id-1", trace)
    assert got["io.modelcontextprotocol/clientInfo"]["name"] == "broker"
    assert got["io.modelcontextprotocol/clientCapabilities"] == declared
    assert "progressToken" not in got
    assert answer.meta is None


async def test_a_question_of_a_server_is_handed_on_with_its_state() -> None:
    async with house() as where, sdk_backend(where, Sdk()) as backend:
        answer = await ask(backend, remote("ask"), a_call(capabilities={"elicitation": {}}))
        assert not answer.is_final
        assert (answer.more["resultType"], answer.more["requestState"]) == ("input_required", "x")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("status", "says"), [(401, "credential"), (403, "does not allow"), (429, "fewer calls"), (500, "failed")]
)
async def test_an_http_status_of_a_server_keeps_its_meaning(legacy: bool, status: int, says: str) -> None:
    sdk = Sdk(legacy=legacy)
    async with house() as where, sdk_backend(where, sdk) as backend:
        assert text_of(await ask(backend, remote("echo"))) == "{}"
        sdk.refuse = status
        with pytest.raises(Rejected, match=says) as error:
            await ask(backend, remote("echo"))
        assert error.value.facts["http_status"] == status
        assert error.value.facts.get("retry_after_ms") == (7000 if status == 429 else None)
        sdk.refuse = 0
        assert text_of(await ask(backend, remote("echo"))) == "{}"


async def test_a_server_that_refuses_our_credential_at_start_says_so_in_its_health() -> None:
    sdk = Sdk()
    sdk.refuse = 401
    async with house() as where, sdk_backend(where, sdk) as backend:
        assert backend.health.state == "down"
        assert "does not accept the broker's credential (HTTP 401)" in backend.health.detail


# Ended in the middle of a stream, the SDK's SSE server leaves its own memory streams unclosed. Not ours to close.
LEAKS = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.mark.parametrize(
    ("legacy", "transport"),
    [(False, "streamable-http"), (True, "streamable-http"), pytest.param(False, "sse", marks=LEAKS)],
)
async def test_a_server_that_was_restarted_is_found_again(legacy: bool, transport: str) -> None:
    bound = listener()
    port = bound.getsockname()[1]
    bound.close()
    path = "/mcp" if transport == "streamable-http" else "/sse"
    document = {"url": f"http://127.0.0.1:{port}{path}", "transport": transport, "allow_private": True}
    async with house() as where, AsyncExitStack() as stack:
        async with serving(Sdk(legacy=legacy).app(transport), port):
            backend = await stack.enter_async_context(opened(where, "mcp", document, "sdk"))
            await where.until_settled(backend)
            assert text_of(await ask(backend, remote("echo"))) == "{}"
        async with serving(Sdk(legacy=legacy).app(transport), port):
            with anyio.fail_after(10):
                assert text_of(await until_answered(backend, where)) == "{}"
            await stack.aclose()


async def until_answered(backend: Backend, where: House) -> Answer:
    """Ask until the server is back; a call that did not reach it must say that nothing was done."""
    while True:
        try:
            return await ask(backend, remote("echo"))
        except (Unavailable, Broken):
            await where.until(lambda: backend.health.state != "starting")
            await anyio.sleep(0.05)


async def test_a_server_that_is_not_there_is_down_and_nothing_is_sent() -> None:
    bound = listener()
    port = bound.getsockname()[1]
    bound.close()
    document = {"url": f"http://127.0.0.1:{port}/mcp", "allow_private": True}
    async with house() as where, opened(where, "mcp", document) as backend:
        await where.until_settled(backend)
        assert backend.health.state == "down"
        assert "connection refused" in backend.health.detail
        assert backend.offer is None
        with pytest.raises(Unavailable) as error:
            await ask(backend, remote("echo"))
        assert error.value.effect == "none"


# ---------------------------------------------------------------------------------------------------- bad stdio servers


async def test_an_old_stdio_server_is_spoken_to_in_its_era_and_keeps_its_unknown_fields(tmp_path: Path) -> None:
    async with house() as where, peer(where, tmp_path) as backend:
        assert offered(backend).protocol_version == "2025-06-18"
        assert offered(backend).server == "peer 1"
        assert offered(backend).tools[0]["x-unknown"] == {"kept": True}
        answer = await ask(backend, remote("echo"), a_call("id-1"), none=None, deep={"x": [1]})
        assert json.loads(text_of(answer)) == {"none": None, "deep": {"x": [1]}}
        assert answer.more == {"extra": {"kept": 1}}
        assert answer.content[0]["x-block"] == 1
        assert answer.structured == {"meta": {"dev.broker/callId": "id-1"}}


async def test_a_child_sees_a_minimal_environment_and_no_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKER_SECRET", "canary")
    (tmp_path / "work").mkdir()
    async with house(str(tmp_path)) as where:
        where.values["${env:KEY}"] = "resolved"
        spec = {"env": {"API_KEY": "${env:KEY}", "GIT_PAGER": "cat"}, "cwd": "work"}
        async with peer(where, tmp_path, "$(touch x)", "; touch y", **spec) as backend:
            seen = json.loads(text_of(await ask(backend, remote("env"))))
    assert set(seen["env"]) <= {"PATH", "HOME", "LANG", "TMPDIR", "API_KEY", "GIT_PAGER", "LC_CTYPE"}
    assert seen["env"]["API_KEY"] == "resolved"
    assert seen["argv"][1:] == ["$(touch x)", "; touch y"]
    assert seen["cwd"] == str(tmp_path / "work")
    assert list((tmp_path / "work").iterdir()) == []


async def test_progress_errors_and_odd_answers_of_a_child(tmp_path: Path) -> None:
    seen: list[Any] = []

    async def progress(*step: Any) -> None:
        seen.append(step)

    async with house() as where, peer(where, tmp_path, "noisy", response_bytes="1MiB") as backend:
        assert text_of(await ask(backend, remote("progress"), a_call(progress=progress))) == "done"
        assert (1.0, 2.0, "go [31m") in seen
        with pytest.raises(Rejected, match=r"no such order \(code -32602\)") as refused:
            await ask(backend, remote("fail"))
        assert "token" not in str(refused.value.facts)
        assert refused.value.recorded.endswith("refused: [not kept] (code -32602). Check the arguments.")
        for name, why in (("big", "larger"), ("broken", "not a JSON-RPC message"), ("odd", "not a tool result")):
            with pytest.raises(AnswerWithheld, match=why) as withheld:
                await ask(backend, remote(name))
            assert withheld.value.effect == "done"
        assert text_of(await ask(backend, remote("echo"))) == "{}"  # and none of it hurt the connection


async def test_a_call_at_its_deadline_is_cancelled_at_the_server(tmp_path: Path) -> None:
    async with house() as where, peer(where, tmp_path) as backend:
        with pytest.raises(TimedOut):
            await ask(backend, remote("hang", timeout_s=0.2))
        assert text_of(await ask(backend, remote("echo"))) == "{}"
    assert "notifications/cancelled" in log_of(tmp_path)


async def test_a_child_that_dies_in_a_call_is_started_again_once(tmp_path: Path) -> None:
    async with house() as where, peer(where, tmp_path) as backend:
        with pytest.raises(Broken) as error:
            await ask(backend, remote("exit"))
        assert error.value.effect == "unknown"
        assert text_of(await ask(backend, remote("echo"))) == "{}"
        with pytest.raises(Broken):
            await ask(backend, remote("exit"))
        await where.until(lambda: backend.health.state == "down")
        assert "stopped: the disk is on fire" in backend.health.detail
    log = log_of(tmp_path)
    assert log.count("start") == 2
    begun = [log[place + 1] for place, line in enumerate(log) if line == "start"]
    assert begun == ["server/discover", "initialize"]  # its era is known the second time


async def test_a_crash_loop_is_slowed_down(tmp_path: Path) -> None:
    async with house() as where, peer(where, tmp_path, "dies") as backend:
        await where.until(lambda: backend.health.state == "down")
        assert "I never feel well" in backend.health.detail
    assert log_of(tmp_path).count("start") <= 2


async def test_a_child_that_never_speaks_is_given_up(tmp_path: Path) -> None:
    async with house() as where, peer(where, tmp_path, "mute", start_timeout="300ms") as backend:
        assert backend.health.state == "down"
        assert "did not speak MCP within 0.3 s" in backend.health.detail


async def test_closing_leaves_no_process_even_of_a_child_that_ignores_everything(tmp_path: Path) -> None:
    async with house() as where, peer(where, tmp_path, "deaf", "child") as backend:
        pids = [int(pid) for pid in text_of(await ask(backend, remote("pid"))).split()]
        assert all(is_running(pid) for pid in pids)
        own = os.getpriority(os.PRIO_PROCESS, 0)
        given = {os.getpriority(os.PRIO_PROCESS, pid) for pid in pids}
        assert given == {min(19, own + NICE)}, "they yield to the broker"
    await until_gone(*pids)


KILLED = """
    import sys, anyio
    from tests.downstream import house, opened, ask, text_of, tool_with
    from broker.backends.mcp import Remote

    async def main():
        async with house() as where, opened(where, "mcp", {"command": sys.argv[1:]}) as backend:
            await where.until_settled(backend)
            print(text_of(await ask(backend, tool_with(Remote("pid")))), flush=True)
            await anyio.sleep(60)

    anyio.run(main)
"""


async def test_kill_9_of_the_broker_ends_its_children_and_theirs(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(KILLED))
    peer_command = [sys.executable, "-I", "-S", PEER, str(tmp_path / "log"), "deaf", "child"]
    root = str(Path(PEER).parents[1])
    environment = {**os.environ, "PYTHONPATH": root}
    async with await anyio.open_process([sys.executable, str(program), *peer_command], env=environment) as broker:
        assert broker.stdout is not None
        with anyio.fail_after(20):
            pids = [int(pid) for pid in (await broker.stdout.receive()).split()]
        assert all(is_running(pid) for pid in pids)
        broker.send_signal(signal.SIGKILL)
        await until_gone(*pids)


async def test_an_idle_child_is_stopped_and_started_by_the_next_call(tmp_path: Path) -> None:
    async with house() as where, peer(where, tmp_path, idle_stop="50ms") as backend:
        await where.until(lambda: "asleep" in backend.health.detail)
        assert (backend.health.state, len(names(backend))) == ("up", 11)
        assert text_of(await ask(backend, remote("echo"))) == "{}"
    assert log_of(tmp_path).count("start") >= 2


@pytest.mark.parametrize(
    ("mode", "tools", "says"),
    [
        ("circle", ["tNone", "ta", "tb"], "in a circle"),
        ("many", [f"t{n}" for n in range(20)], "more than 20"),
        ("twice", ["a", "b"], "twice"),
    ],
)
async def test_an_odd_list_is_taken_as_far_as_it_can_be_used(
    tmp_path: Path, mode: str, tools: list[str], says: str
) -> None:
    async with house() as where, peer(where, tmp_path, mode, max_tools=20) as backend:
        assert backend.health.state == "degraded"
        assert says in backend.health.detail
        assert names(backend) == tools


async def test_a_child_that_announces_a_change_is_listed_again(tmp_path: Path) -> None:
    async with house() as where, peer(where, tmp_path) as backend:
        await ask(backend, remote("change"))
        await where.until(lambda: "added" in names(backend))


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"command": ["x"], "url": "https://a.example"},
        {"command": [""]},
        {"command": ["x", "--token=${env:TOKEN}"]},
        {"command": "x y"},
        {"command": ["x"], "allow_private": True},
        {"url": "https://a.example", "env": {"A": "b"}},
        {"url": "https://a.example/mcp?x=1"},
        {"url": "http://a.example/mcp"},
        {"url": "https://a.example", "transport": "stdio"},
        {"command": ["x"], "env": {"A=B": "c"}},
    ],
)
def test_a_wrong_backend_is_refused_at_load(spec: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        KIND.Spec.model_validate(spec)
    assert KIND.Spec.model_validate({"command": ["x"], "idle_stop": "5m"})
