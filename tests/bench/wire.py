"""The requests of the bench as bytes: one tool call or one list, in the newest revision a server answers it in."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from typing import Any

from tests.bench.load import MARK

MODERN, HANDSHAKE = "2026-07-28", "2025-11-25"
TEXT = f"call {MARK.decode()} of the quick brown fox over the lazy dog"
EXPECTED = f"call {MARK.decode()} of the quick".encode()
ACCEPT = "application/json, text/event-stream"
_PREFIX = "io.modelcontextprotocol/"
_META = {
    f"{_PREFIX}protocolVersion": MODERN,
    f"{_PREFIX}clientCapabilities": {},
    f"{_PREFIX}clientInfo": {"name": "bench", "version": "1"},
}


@dataclass(frozen=True, slots=True)
class Door:
    """Where a server is asked. session: of the handshake era, "" in the modern one. tool: the echo's name there."""

    port: int
    path: str = "/mcp"
    token: str = ""
    session: str | None = ""
    tool: str = "echo"

    def request(self, body: bytes, method: str, name: str = "") -> bytes:
        lines = [f"POST {self.path} HTTP/1.1", f"Host: 127.0.0.1:{self.port}", *_headers(self, method, name)]
        return ("\r\n".join(lines) + f"\r\nContent-Length: {len(body)}\r\n\r\n").encode() + body

    def call(self) -> bytes:
        params = {"name": self.tool, "arguments": _arguments()}
        return self.request(self._body("tools/call", params), "tools/call", self.tool)

    def listing(self) -> bytes:
        return self.request(self._body("tools/list", {}), "tools/list")

    def _body(self, method: str, params: dict[str, Any]) -> bytes:
        if self.session == "":
            params = {**params, "_meta": _META}
        text = json.dumps({"jsonrpc": "2.0", "id": "#", "method": method, "params": params}, separators=(",", ":"))
        return text.replace('"#"', MARK.decode()).encode()


def call_of(door: Door, tool: str, arguments: dict[str, Any]) -> bytes:
    """A modern call of another tool."""
    params = {"name": tool, "arguments": arguments, "_meta": _META}
    body = json.dumps({"jsonrpc": "2.0", "id": "#", "method": "tools/call", "params": params}, separators=(",", ":"))
    return door.request(body.replace('"#"', MARK.decode()).encode(), "tools/call", tool)


def http_echo(port: int) -> bytes:
    """The same call to the service itself, without MCP."""
    body = json.dumps(_arguments()).replace('"#"', MARK.decode()).encode()
    head = f"POST /echo HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    return head.encode() + b"Content-Length: %d\r\n\r\n%s" % (len(body), body)


def door_of(port: int, path: str = "/mcp", token: str = "", tool: str = "echo") -> Door:
    """The newest way in that answers a call: without a session, or with one. Raises ValueError with the last answer."""
    modern = Door(port, path, token, tool=tool)
    status, said = _once(modern, modern.call())
    if status == 200 and b"of the quick" in said:
        return modern
    session = _session(port, path, token)
    handshake = Door(port, path, token, session, tool)
    status, said = _once(handshake, handshake.call())
    if status != 200 or b"of the quick" not in said:
        raise ValueError(f"no call is answered: HTTP {status}: {said[:300]!r}")
    return handshake


def _arguments() -> dict[str, Any]:
    return {"n": 7, "text": TEXT}


def _headers(door: Door, method: str, name: str) -> list[str]:
    lines = [f"Accept: {ACCEPT}", "Content-Type: application/json"]
    if door.token:
        lines.append(f"Authorization: Bearer {door.token}")
    if door.session == "":
        lines += [f"MCP-Protocol-Version: {MODERN}", f"Mcp-Method: {method}"]
        return [*lines, f"Mcp-Name: {name}"] if name else lines
    return [
        *lines,
        f"MCP-Protocol-Version: {HANDSHAKE}",
        *([f"Mcp-Session-Id: {door.session}"] if door.session else []),
    ]


def _once(door: Door, request: bytes) -> tuple[int, bytes]:
    head, _, body = request.replace(MARK, b"100000000").partition(b"\r\n\r\n")
    lines = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
    connection = http.client.HTTPConnection("127.0.0.1", door.port, timeout=20)
    try:
        connection.request("POST", door.path, body, lines)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def _session(port: int, path: str, token: str) -> str | None:
    """The id of a handshake-era session, None where the server wants none."""
    client = {"protocolVersion": HANDSHAKE, "capabilities": {}, "clientInfo": {"name": "bench", "version": "1"}}
    headers = {"Accept": ACCEPT, "Content-Type": "application/json"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        body = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": client}
        connection.request("POST", path, json.dumps(body), headers)
        answer = connection.getresponse()
        answer.read()
        session = answer.headers.get("mcp-session-id")
        if session:
            headers |= {"Mcp-Session-Id": session, "MCP-Protocol-Version": HANDSHAKE}
        connection.request("POST", path, json.dumps({"jsonrpc": "2.0", "method": "notifications/initialized"}), headers)
        connection.getresponse().read()
        return session
    finally:
        connection.close()
