"""What the gate lets in and what it stops, row by row: headers, media types, tokens, eras, header against body.

The gate is driven as the ASGI application it is, without a server, so that any header can be sent. What depends on
bytes and time is in tests/stories/test_wire_connection.py.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import anyio
import orjson
import pytest
from mcp.shared.inbound import InboundLadderRejection, classify_inbound_request

from broker.errors import RecordUnavailable
from broker.faces import web
from broker.faces.mcp.agreement import disagreement
from broker.faces.mcp.bodies import Body, Budget
from broker.faces.mcp.direct import Direct
from broker.faces.mcp.replies import KINDS
from broker.faces.mcp.strict import as_message
from broker.model.principal import Principal
from broker.settings import Limits
from tests.serving import MODERN, Keys, Tools, agents_with, modern, modern_call, settings_with, tool

pytestmark = pytest.mark.anyio

HOST = b"127.0.0.1:8750"
SERVER = ("127.0.0.1", 8750)


@dataclass(slots=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)

    @property
    def code(self) -> int:
        return self.json["error"]["code"]


class House:
    """The whole face behind its root, with stand-ins for pipeline and gatekeeper."""

    def __init__(self, **sections: Any) -> None:
        self.tools, self.keys, self.refused = Tools(), Keys(), list[str]()
        settings = settings_with(**sections)
        self.agents = agents_with(self.tools, self.keys, settings, lambda: "http://127.0.0.1:8750", self.refused)
        self.app = web.build(self.agents)

    async def ask(
        self,
        method: str = "POST",
        path: str = "/mcp",
        headers: Iterable[tuple[bytes, bytes]] = (),
        body: bytes | list[bytes] = b"",
        query: bytes = b"",
    ) -> Reply:
        """One request; then the client stays connected."""
        pieces = [body] if isinstance(body, bytes) else body
        messages = [
            {"type": "http.request", "body": piece, "more_body": place < len(pieces)}
            for place, piece in enumerate(pieces, 1)
        ]
        sent: list[Any] = []

        async def receive() -> Any:
            if messages:
                return messages.pop(0)
            await anyio.sleep_forever()
            raise AssertionError

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": query,
            "headers": list(headers),
            "server": SERVER,
        }
        with anyio.fail_after(5):
            await self.app(scope, receive, send)
        lines = {name.decode(): value.decode("latin-1") for name, value in sent[0]["headers"]}
        return Reply(sent[0]["status"], lines, b"".join(message.get("body", b"") for message in sent[1:]))

    async def call(
        self, message: Any = None, *, without: Iterable[str] = (), body: bytes | list[bytes] | None = None, **more: Any
    ) -> Reply:
        """A modern call of echo, with some headers replaced (a list means several copies) or left out."""
        wanted: dict[str, Any] = modern_call("echo", {"text": "hi"}) if message is None else message
        headers: dict[str, Any] = {
            "host": HOST.decode(),
            "authorization": "Bearer ann",
            "content-type": "application/json",
            "accept": "application/json, text/event-stream",
            "mcp-protocol-version": MODERN,
            "mcp-method": wanted["method"],
            "mcp-name": "echo",
            **{name.replace("_", "-"): value for name, value in more.items()},
        }
        lines: list[tuple[bytes, bytes]] = []
        for name, value in headers.items():
            copies = cast("list[Any]", value) if isinstance(value, list) else [value]
            if name not in without:
                lines += [(name.encode(), copy if isinstance(copy, bytes) else copy.encode()) for copy in copies]
        return await self.ask(headers=lines, body=orjson.dumps(wanted) if body is None else body)


@pytest.fixture
def house() -> House:
    return House()


def wrapped(text: str) -> str:
    return f"=?base64?{base64.b64encode(text.encode()).decode()}?="


async def test_a_plain_modern_call_is_answered_in_one_object(house: House) -> None:
    reply = await house.call()
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    assert reply.json["result"]["structuredContent"] == {"by": "ann", "text": "hi"}
    assert reply.json["result"]["resultType"] == "complete"
    assert reply.json["result"]["_meta"]["io.modelcontextprotocol/serverInfo"]["version"] == "1.2.3"
    assert house.refused == []


# ------------------------------------------------------------------------------------------------- where it is sent to

STRANGE_HOSTS: dict[str, tuple[Any, int]] = {
    "foreign": ("evil.example", 421),
    "foreign with our port": ("evil.example:8750", 421),
    "another port": ("127.0.0.1:8751", 421),
    "no port": ("127.0.0.1", 421),
    "ours as a prefix": ("localhost:8750.evil", 400),
    "with a path": ("localhost:8750/x?", 400),
    "with userinfo": ("localhost:8750@evil", 400),
    "with a space": ("localhost :8750", 400),
    "a dot at the end": ("localhost.:8750", 421),
    "empty": ("", 400),
    "twice": (["127.0.0.1:8750", "127.0.0.1:8750"], 400),
    "two kinds": (["127.0.0.1:8750", "evil"], 400),
    "not ASCII": ("localhost:875０".encode(), 400),
}


@pytest.mark.parametrize("name", STRANGE_HOSTS)
async def test_a_host_that_is_not_ours_is_refused(house: House, name: str) -> None:
    host, status = STRANGE_HOSTS[name]
    assert (await house.call(host=host)).status == status
    assert house.refused == ["foreign_host"]
    assert house.tools.calls == []


async def test_a_request_without_host_is_refused(house: House) -> None:
    assert (await house.call(without=["host"])).status == 400


@pytest.mark.parametrize("host", ["localhost:8750", "LOCALHOST:8750", "[::1]:8750", "127.0.0.1:8750"])
async def test_every_spelling_of_loopback_is_ours(house: House, host: str) -> None:
    assert (await house.call(host=host)).status == 200


async def test_further_hosts_and_the_public_one_come_from_the_settings() -> None:
    house = House(allowed_hosts=["broker.internal", "other:9000"])
    for host, status in (
        ("broker.internal", 200),
        ("broker.internal:1234", 200),
        ("other:9000", 200),
        ("other:9001", 421),
    ):
        assert (await house.call(host=host)).status == status


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "null",
        "http://localhost.evil",
        "https://allowed.evil",
        "http://localhost:8751",
        "https://localhost:8750",
        "http://app.example",
        "https://app.example:8443",
        "",
    ],
)
async def test_a_foreign_origin_is_refused(origin: str) -> None:
    house = House(allowed_origins=["https://app.example"])
    assert (await house.call(origin=origin)).status == 403
    assert house.refused == ["foreign_origin"]


async def test_an_allowed_origin_may_call_and_read() -> None:
    house = House(allowed_origins=["https://app.example"])
    for origin in ("https://app.example", "http://localhost:8750"):
        reply = await house.call(origin=origin)
        assert (reply.status, reply.headers["access-control-allow-origin"]) == (200, origin)
    asked = await house.ask("OPTIONS", headers=[(b"host", HOST), (b"origin", b"https://app.example")])
    assert (asked.status, asked.headers["access-control-allow-origin"]) == (204, "https://app.example")


@pytest.mark.parametrize("path", ["//mcp", "/mcp/", "/mcp;x", "/mcp%2f", "/MCP", "/healthz/../mcp", "/%6dcp", "/sse/"])
async def test_no_other_spelling_of_a_path_leads_anywhere(house: House, path: str) -> None:
    assert (await house.ask("GET", path, headers=[(b"host", HOST), (b"user-agent", b"kube-probe/1")])).status == 404


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_probes_need_neither_host_nor_token(house: House, path: str) -> None:
    assert (await house.ask("GET", path)).status == 200


async def test_readiness_says_why_not() -> None:
    house = House()
    app = web.build(house.agents, not_ready=lambda: ["the database is locked"])
    house.app = app
    reply = await house.ask("GET", "/readyz")
    assert (reply.status, reply.json["reasons"]) == (503, ["the database is locked"])


@pytest.mark.parametrize(
    ("path", "method"), [("/mcp", "PUT"), ("/sse", "POST"), ("/messages/", "GET"), ("/mcp", "HEAD")]
)
async def test_a_method_that_is_not_served_is_405(house: House, path: str, method: str) -> None:
    reply = await house.ask(method, path, headers=[(b"host", HOST), (b"authorization", b"Bearer ann")])
    assert reply.status == 405
    assert reply.headers["allow"]


# ---------------------------------------------------------------------------------------------------------- who it is

NO_TOKENS: dict[str, Any] = {
    "empty": "",
    "only the word": "Bearer",
    "an empty token": "Bearer ",
    "a tab": "Bearer\tann",
    "a list": "Bearer ann, Bearer bob",
    "two tokens": "Bearer ann bob",
    "Basic": "Basic YW5uOmFubg==",
    "no scheme": "ann",
    "a bad one": "Bearer bad",
    "1 MB": "Bearer " + "a" * 1_000_000,
    "not ASCII": "Bearer änn".encode(),
}


@pytest.mark.parametrize("name", NO_TOKENS)
async def test_what_is_not_one_good_token_is_401_with_a_challenge(house: House, name: str) -> None:
    reply = await house.call(authorization=NO_TOKENS[name])
    assert reply.status == 401
    assert 'error="invalid_token"' in reply.headers["www-authenticate"]
    assert "/.well-known/oauth-protected-resource/mcp" in reply.headers["www-authenticate"]
    assert reply.json["error"]["message"].startswith("Refused")
    assert house.refused == ["unauthenticated"]


async def test_without_a_token_the_challenge_names_no_error(house: House) -> None:
    reply = await house.call(without=["authorization"])
    assert reply.status == 401
    assert "error=" not in reply.headers["www-authenticate"]


async def test_the_challenge_speaks_of_the_host_as_the_client_calls_it(house: House) -> None:
    reply = await house.call(without=["authorization"], host="localhost:8750")
    assert 'resource_metadata="http://localhost:8750/' in reply.headers["www-authenticate"]


async def test_two_tokens_are_none(house: House) -> None:
    assert (await house.call(authorization=["Bearer ann", "Bearer ann"])).status == 400


@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "Bearer"])
async def test_the_scheme_is_written_in_any_case(house: House, scheme: str) -> None:
    assert (await house.call(authorization=f"{scheme} ann")).status == 200


@pytest.mark.parametrize(
    "query", [b"access_token=ann", b"x=1&access_token=ann", b"Access_Token=ann", b"access%5ftoken=a"]
)
async def test_a_token_in_the_url_is_refused_even_beside_a_good_one(house: House, query: bytes) -> None:
    headers = [(b"host", HOST), (b"authorization", b"Bearer ann")]
    assert (await house.ask(headers=headers, query=query)).status == 401
    assert house.refused == ["token_in_query"]


async def test_a_token_after_any_number_of_other_parameters_is_found(house: House) -> None:
    headers = [(b"host", HOST), (b"authorization", b"Bearer ann")]
    assert (await house.ask(headers=headers, query=b"x&" * 5000 + b"access_token=ann")).status == 401
    assert house.refused == ["token_in_query"]


async def test_identity_comes_before_the_body(house: House) -> None:
    assert (await house.call(body=b"{", authorization="Bearer bad")).status == 401


async def test_nobody_gets_in_while_it_cannot_be_known_who_calls(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    async def unknown(_self: Keys, _credential: str | None) -> Principal:
        raise RecordUnavailable("The directory cannot be read.")

    monkeypatch.setattr(Keys, "__call__", unknown)
    assert (await house.call()).status == 503


async def test_identity_never_comes_from_meta(house: House) -> None:
    message = modern_call("echo", user="root", principal={"agent": "root"})
    assert (await house.call(message)).json["result"]["structuredContent"]["by"] == "ann"


# --------------------------------------------------------------------------------------------------------------- body

MEDIA_TYPES: dict[str, int] = {
    "application/json": 200,
    "Application/JSON": 200,
    "application/json; charset=utf-8": 200,
    'application/json;charset="UTF-8"': 200,
    "application/jsonevil": 415,
    "application/json, text/plain": 415,
    "application/json/x": 415,
    "text/plain": 415,
    "multipart/form-data; boundary=application/json": 415,
    "application/json; charset=latin-1": 400,
    "application/json; charset=utf-16": 400,
    "": 415,
}


@pytest.mark.parametrize("kind", MEDIA_TYPES)
async def test_the_media_type_is_compared_whole(house: House, kind: str) -> None:
    assert (await house.call(content_type=kind)).status == MEDIA_TYPES[kind]


async def test_a_body_without_a_type_or_compressed_is_refused(house: House) -> None:
    assert (await house.call(without=["content-type"])).status == 415
    assert (await house.call(content_encoding="gzip")).status == 415


async def test_a_body_at_the_limit_is_read_and_one_above_is_not() -> None:
    house = House(limits={"body_bytes": 4096})
    body = orjson.dumps(modern_call("echo", {"text": "hi"}))
    at_limit = body + b" " * (4096 - len(body))
    assert (await house.call(body=at_limit)).status == 200
    assert (await house.call(body=at_limit + b" ")).status == 413
    assert (await house.call(body=[at_limit, b" "])).status == 413
    assert (await house.call(content_length="4097")).status == 413
    assert house.refused == ["too_large"] * 3
    assert house.agents.bytes_left == 268_435_456


async def test_a_length_of_any_number_of_digits_is_a_length(house: House) -> None:
    body = orjson.dumps(modern_call("echo", {"text": "hi"}))
    padded, endless = f"{len(body):06000}", "9" * 6000
    assert (await house.call(body=body, content_length=padded)).status == 200
    assert (await house.call(body=body, content_length=endless)).status == 413
    form = [(b"host", HOST), (b"content-length", padded.encode())]
    assert (await house.ask("POST", "/oauth/token", form)).status == 404
    assert (await house.ask("POST", "/oauth/token", [form[0], (b"content-length", endless.encode())])).status == 413


async def test_all_bodies_together_have_a_budget() -> None:
    budget, limits = Budget(10), Limits(body_bytes=1024)
    one, other = Body(budget, limits.body_bytes), Body(budget, limits.body_bytes)

    async def receive(size: int) -> Any:
        return {"type": "http.request", "body": b"x" * size}

    assert await one.read({}, lambda: receive(10)) == b"x" * 10
    with pytest.raises(Exception, match="bytes_in_flight"):
        await other.read({}, lambda: receive(1))
    one.release()
    assert await other.read({}, lambda: receive(1)) == b"x"


async def test_a_body_in_pieces_is_one_body(house: House) -> None:
    body = orjson.dumps(modern_call("echo", {"text": "hi"}))
    assert (await house.call(body=[body[:5], body[5:50], b"", body[50:]])).status == 200


BAD_BODIES: dict[str, tuple[bytes, int]] = {
    "not JSON": (b"{", -32700),
    "a key twice": (b'{"jsonrpc":"2.0","id":1,"method":"tools/list","method":"tools/call"}', -32700),
    "a byte order mark": (b"\xef\xbb\xbf" + orjson.dumps(modern("tools/list")), -32700),
    "a batch": (b"[" + orjson.dumps(modern("tools/list")) + b"]", -32600),
    "id null": (orjson.dumps(modern("tools/list", request_id=None)), -32600),
    "id float": (orjson.dumps(modern("tools/list", request_id=1.5)), -32600),
    "a response": (b'{"jsonrpc":"2.0","id":1,"result":{}}', -32600),
}


@pytest.mark.parametrize("name", BAD_BODIES)
@pytest.mark.parametrize("era", [MODERN, "2025-11-25", None])
async def test_what_is_no_message_is_400_in_either_era(house: House, name: str, era: str | None) -> None:
    body, code = BAD_BODIES[name]
    without = ["mcp-protocol-version"] if era is None else []
    reply = await house.call(body=body, without=without, mcp_protocol_version=era or "")
    assert (reply.status, reply.code) == (400, code)


# ---------------------------------------------------------------------------------------------------- header and body

LIES: dict[str, tuple[dict[str, Any], int, int]] = {
    "another name": ({"mcp_name": "locked"}, 400, -32020),
    "a name in other case": ({"mcp_name": "ECHO"}, 400, -32020),
    "a broken wrapping": ({"mcp_name": "=?base64?x?="}, 400, -32020),
    "another method": ({"mcp_method": "tools/list"}, 400, -32020),
    "a name twice": ({"mcp_name": ["echo", "echo"]}, 400, -32020),
    "a method twice": ({"mcp_method": ["tools/call", "tools/call"]}, 400, -32020),
    "a version twice": ({"mcp_protocol_version": [MODERN, MODERN]}, 400, -32020),
    "a version unlike the body's": ({"mcp_protocol_version": "2099-01-01"}, 400, -32020),
    "an empty version": ({"mcp_protocol_version": ""}, 400, -32020),
}


@pytest.mark.parametrize("name", LIES)
async def test_headers_that_differ_from_the_body_are_refused(house: House, name: str) -> None:
    headers, status, code = LIES[name]
    reply = await house.call(**headers)
    assert (reply.status, reply.code) == (status, code)
    assert house.tools.calls == []


@pytest.mark.parametrize("missing", ["mcp-name", "mcp-method"])
async def test_headers_that_are_missing_are_refused(house: House, missing: str) -> None:
    reply = await house.call(without=[missing])
    assert (reply.status, reply.code) == (400, -32020)


async def test_a_wrapped_name_is_unwrapped_before_it_is_compared(house: House) -> None:
    assert (await house.call(mcp_name=wrapped("echo"))).status == 200
    assert (await house.call(mcp_name=wrapped("locked"))).code == -32020


async def test_a_version_nobody_serves_is_named_with_those_that_are(house: House) -> None:
    message = modern_call("echo", **{"io.modelcontextprotocol/protocolVersion": "2099-01-01"})
    reply = await house.call(message, mcp_protocol_version="2099-01-01")
    assert (reply.status, reply.code) == (400, -32022)
    assert reply.json["error"]["data"] == {"supported": [MODERN], "requested": "2099-01-01"}
    assert house.refused == ["unsupported_version"]


@pytest.mark.parametrize("key", ["protocolVersion", "clientCapabilities"])
async def test_missing_meta_is_invalid_params(house: House, key: str) -> None:
    message = modern_call("echo")
    del message["params"]["_meta"][f"io.modelcontextprotocol/{key}"]
    reply = await house.call(message)
    assert (reply.status, reply.code) == (400, -32602)


async def test_a_handshake_era_call_with_lying_headers_is_judged_by_its_body(house: House) -> None:
    """The version alone decides the era; what Mcp-Name says then is nobody's business."""
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "locked"}}
    async with house.agents.running():
        reply = await house.call(message, mcp_protocol_version="2025-11-25", mcp_session_id="any", mcp_name="echo")
    assert reply.status == 403
    assert [call.name for call in house.tools.calls] == ["locked"]


def variations() -> Iterable[tuple[dict[str, Any], Mapping[bytes, bytes]]]:
    good = {b"mcp-protocol-version": MODERN.encode(), b"mcp-method": b"tools/call", b"mcp-name": b"echo"}
    bodies = [modern_call("echo"), modern("tools/list"), modern("resources/read", {"uri": "x://é"})]
    bodies += [modern_call("echo", **{"io.modelcontextprotocol/protocolVersion": v}) for v in ("2099-01-01", None, 1)]
    strange: list[dict[str, Any]] = [{}, {"_meta": {}}, {"_meta": 1}]
    bodies += [{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params} for params in strange]
    names = [b"", b"echo", b"=?base64?", wrapped("x://é").encode(), wrapped("echo").encode(), b"=?base64?ZWNobx==?="]
    for body in bodies:
        yield body, good
        yield body, {}
        for version in (b"2099-01-01", b""):
            yield body, {**good, b"mcp-protocol-version": version}
        for method in (b"tools/list", b"resources/read", b""):
            for name in names:
                yield body, {**good, b"mcp-method": method, b"mcp-name": name}


async def test_the_gate_and_the_sdk_climb_the_same_ladder() -> None:
    """Same code for every combination of headers and body, as the SDK would answer behind the gate."""
    seen = set[int]()
    for body, headers in variations():
        ours = disagreement(headers, as_message(body, Limits()))
        theirs = classify_inbound_request(body, headers={k.decode(): v.decode("latin-1") for k, v in headers.items()})
        expected = theirs.code if isinstance(theirs, InboundLadderRejection) else 0
        assert (ours.code if ours else 0) == expected, (body, headers)
        seen.add(expected)
    assert seen == {0, -32602, -32020, -32022}


# ------------------------------------------------------------------------------------------------------ calls and ends


async def test_an_unknown_tool_is_the_same_bytes_for_every_name(house: House) -> None:
    replies = [await house.call(modern_call(name), mcp_name=name) for name in ("nothing", "foreign", "x" * 4000, "")]
    for name, reply in zip(("nothing", "foreign", "x" * 128, ""), replies, strict=True):
        assert reply.status == 400
        expected = {"jsonrpc": "2.0", "id": 1, "error": {"code": -32602, "message": f"Unknown tool: {name}"}}
        assert reply.body == orjson.dumps(expected)


async def test_missing_scopes_are_challenged_and_the_attempt_is_a_call(house: House) -> None:
    reply = await house.call(modern_call("locked"), mcp_name="locked")
    assert reply.status == 403
    assert 'error="insufficient_scope"' in reply.headers["www-authenticate"]
    assert 'scope="vault.open"' in reply.headers["www-authenticate"]
    assert reply.json["error"]["message"] == "Refused: locked needs vault.open."
    assert [call.name for call in house.tools.calls] == ["locked"]
    granted = await house.call(modern_call("locked"), mcp_name="locked", authorization="Bearer ann~vault.open")
    assert granted.status == 200


async def test_refusals_and_holds_are_results_with_status_200(house: House) -> None:
    refused = await house.call(modern_call("echo", {"wrong": 1}))
    assert (refused.status, refused.json["result"]["isError"]) == (200, True)
    assert refused.json["result"]["structuredContent"]["message"] in refused.json["result"]["content"][0]["text"]
    held = await house.call(modern_call("hold"), mcp_name="hold")
    assert (held.status, held.json["result"]["isError"]) == (200, False)
    assert held.json["result"]["structuredContent"]["message"].startswith("Held")


async def test_a_call_carries_what_it_was_sent_with(house: House) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    message = modern_call("echo", {"n": 2**63}, request_id="r-1", traceparent=trace, **{"com.example/x": 1})
    await house.call(message, traceparent="00-ignored")
    (call,) = house.tools.calls
    assert (call.request_id, call.face, call.arguments) == ("r-1", "mcp-http", {"n": 2**63})
    assert call.trace_id == "0af7651916cd43dd8448eb211c80319c"
    assert call.meta == {"traceparent": trace, "com.example/x": 1}


@pytest.mark.parametrize(
    "trace",
    [
        "", "x", "00-ignored", "00-" + "0" * 32 + "-b7ad6b7169203331-01", "€",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\nX-Evil: 1",
        "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-" + "x" * 100, 5, {"a": 1},
    ],
)  # fmt: skip
async def test_a_trace_context_that_is_none_goes_no_further(house: House, trace: Any) -> None:
    """Backends send it on as a header; what no header can carry must not make their requests fail."""
    assert (await house.call(modern_call("echo", {}, traceparent=trace))).status == 200
    (call,) = house.tools.calls
    assert (call.trace_parent, call.trace_id) == ("", "")


async def test_an_answer_that_is_not_json_is_told_as_such(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.tools.tools.append(tool("strange"))

    async def strange(_self: Tools, _call: Any) -> Any:
        from broker.model.answer import Answer

        return Answer(structured={"n": 2**70})

    monkeypatch.setattr(Tools, "perform", strange)
    result = (await house.call(modern_call("strange"), mcp_name="strange")).json["result"]
    assert (result["isError"], result["structuredContent"]["effect"]) == (True, "unknown")


async def test_a_bug_behind_the_face_is_answered_without_its_details(
    house: House, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    async def broken(_self: Tools, _call: Any) -> Any:
        raise ValueError("hunter2")

    monkeypatch.setattr(Tools, "perform", broken)
    reply = await house.call()
    assert reply.json["result"]["structuredContent"]["code"] == "internal"
    assert b"hunter2" not in reply.body
    capfd.readouterr()


SENT_ON: dict[str, dict[str, Any]] = {
    "progress": modern_call("echo", progressToken="p"),
    "a log level": modern_call("echo", **{"io.modelcontextprotocol/logLevel": "info"}),
    "strange capabilities": modern_call("echo", **{"io.modelcontextprotocol/clientCapabilities": {"roots": 1}}),
    "a strange client": modern_call("echo", **{"io.modelcontextprotocol/clientInfo": {"name": 1}}),
    "input responses": modern("tools/call", {"name": "echo", "inputResponses": {}}),
    "arguments null": modern("tools/call", {"name": "echo", "arguments": None}),
    "mirrored arguments": modern_call("mirrored"),
}


@pytest.mark.parametrize("name", SENT_ON)
async def test_what_is_not_a_plain_call_goes_on_to_the_sdk(house: House, name: str, monkeypatch: Any) -> None:
    house.tools.tools.append(tool("mirrored", properties={"region": {"type": "string", "x-mcp-header": "Region"}}))

    def never(*_args: Any) -> Any:
        raise AssertionError("answered directly")

    monkeypatch.setattr(Direct, "answer", never)
    message = SENT_ON[name]
    async with house.agents.running():
        reply = await house.call(message, mcp_name=message["params"]["name"])
    assert reply.status in (200, 400)


async def test_both_ways_give_the_same_answer(house: House) -> None:
    """The direct way and the SDK's differ in the order of keys at most."""
    async with house.agents.running():
        for name, arguments in (("echo", {"text": "ä"}), ("echo", {"wrong": 1}), ("nothing", {})):
            direct = (await house.call(modern_call(name, arguments), mcp_name=name)).json
            relayed = (await house.call(modern_call(name, arguments, progressToken=1), mcp_name=name)).json
            for answer in (direct, relayed):
                structured = answer.get("result", {}).get("structuredContent", {})
                if structured.pop("call_id", None):
                    answer["result"]["content"] = [{**answer["result"]["content"][0], "text": "…"}]
            assert direct == relayed


async def test_a_mirrored_argument_is_checked_only_for_those_who_may_see_the_tool(house: House) -> None:
    house.tools.tools.append(tool("mirrored", properties={"region": {"type": "string", "x-mcp-header": "Region"}}))
    message = modern_call("mirrored", {"region": "eu"})
    async with house.agents.running():
        lying = await house.call(message, mcp_name="mirrored", mcp_param_region="us")
        assert (lying.status, lying.code) == (400, -32020)
        honest = await house.call(message, mcp_name="mirrored", mcp_param_region="eu")
        assert honest.status == 200
        house.tools.listing = lambda _principal: ()  # type: ignore[method-assign]
        hidden = await house.call(message, mcp_name="mirrored", mcp_param_region="us")
        assert hidden.status == 200  # as far as the face is concerned; the pipeline does not know the tool either


async def test_json_alone_is_enough_for_a_call_and_not_for_a_stream(house: House) -> None:
    assert (await house.call(accept="application/json")).status == 200
    assert (await house.call(modern("tools/list"), accept="application/json", without=["mcp-name"])).status == 406
    assert (await house.call(accept="text/html")).status == 406


async def test_every_kind_of_refusal_is_in_the_table() -> None:
    import re
    from pathlib import Path

    import broker.faces.mcp as face

    folder = Path(face.__path__[0])
    used = set[str]()
    for path in folder.glob("*.py"):
        text = path.read_text("utf-8")
        used.update(re.findall(r'Stop\(\s*"(\w+)"', text))
        used.update(re.findall(r'on_refused\("(\w+)"\)', text))
        used.update(re.findall(r'kind = "(\w+)" if', text))
    assert used <= set(KINDS)
    assert len(used) > 10
