"""All the beasts that speak HTTP, in one process: `python -m tests.zoo.server` prints its URL and serves until killed.

    /http/WAY          an API                                /sse/WAY     an MCP server of 2024, HTTP+SSE
    /modern/WAY        an MCP server of 2026-07-28           /legacy/WAY  one of the handshake era

On bare streams, because what they do no HTTP server would.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import struct
from asyncio import StreamReader, StreamWriter
from collections.abc import Awaitable, Callable

from tests.zoo.mcp import PAUSE_S, Message, answer_of, message, text

BOMB = gzip.compress(b" " * 64 * 1024 * 1024, compresslevel=1)
FOR_EVER_S = 3600.0


class Peer:
    """One connection, and what was asked on it."""

    def __init__(self, reader: StreamReader, writer: StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.method = self.path = ""
        self.asked: Message = {}

    async def read(self) -> bool:
        """The next request; False at the end."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        self.method, self.path, _ = lines[0].split(" ")
        named = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)}
        body = await self.reader.readexactly(int(named.get("content-length", "0")))
        self.asked = json.loads(body) if body else {}
        return True

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self, *lines: str, status: str = "200 OK", kind: str = "application/json") -> None:
        await self.send("\r\n".join([f"HTTP/1.1 {status}", f"Content-Type: {kind}", *lines, "", ""]).encode())

    async def whole(self, body: bytes, *lines: str, status: str = "200 OK", kind: str = "application/json") -> None:
        await self.head(f"Content-Length: {len(body)}", *lines, status=status, kind=kind)
        await self.send(body)

    def reset(self) -> None:
        """End the connection without a word, as a crash does."""
        raw: socket.socket = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def events(self) -> None:
        await self.head("Connection: close", kind="text/event-stream")

    async def event(self, body: bytes) -> None:
        await self.send(b"data: " + body + b"\n\n")


# ------------------------------------------------------------------------------------------------- ways to misbehave


async def hang(_peer: Peer) -> None:
    await asyncio.sleep(FOR_EVER_S)


async def trickle(peer: Peer) -> None:
    await peer.head("Content-Length: 1000000")
    while True:
        await peer.send(b" ")
        await asyncio.sleep(PAUSE_S)


async def endless(peer: Peer) -> None:
    await peer.head("Transfer-Encoding: chunked")
    while True:
        await peer.send(b"10000\r\n" + b" " * 0x10000 + b"\r\n")


async def bomb(peer: Peer) -> None:
    await peer.whole(BOMB, "Content-Encoding: gzip")


async def reset(peer: Peer) -> None:
    await peer.head("Content-Length: 1000")
    await peer.send(b"{" * 500)
    await asyncio.sleep(PAUSE_S)
    peer.reset()


async def early_reset(peer: Peer) -> None:
    peer.reset()


async def redirect(peer: Peer) -> None:
    await peer.whole(b"", "Location: http://169.254.169.254/latest/meta-data/", status="307 Temporary Redirect")


async def garbage(peer: Peer) -> None:
    await peer.send(b"\x00\xff\x16\x03\x01 not HTTP at all\r\n\r\n")
    peer.writer.close()


async def html(peer: Peer) -> None:
    await peer.whole(b"<html>sign in</html>", kind="text/html")


async def comments(peer: Peer) -> None:
    await peer.events()
    while True:
        await peer.send(b": still here\n\n")
        await asyncio.sleep(PAUSE_S)


async def flood(peer: Peer) -> None:
    await peer.events()
    while True:
        await peer.event(message(method="notifications/message", params={"level": "info", "data": "x"}))


async def progress(peer: Peer) -> None:
    await peer.events()
    token = peer.asked["params"].get("_meta", {}).get("progressToken", peer.asked["id"])
    while True:
        await peer.event(message(method="notifications/progress", params={"progressToken": token, "progress": 1}))


async def wrong_id(peer: Peer) -> None:
    await peer.whole(message(id=peer.asked["id"] + 1_000_000, result=text("for somebody else")))


async def huge_event(peer: Peer) -> None:
    await peer.events()
    await peer.send(b"data: ")
    while True:
        await peer.send(b"x" * 65_536)


WAYS: dict[str, Callable[[Peer], Awaitable[None]]] = {
    way.__name__: way
    for way in (
        hang, trickle, endless, bomb, reset, early_reset, redirect, garbage, html, comments, flood, progress, wrong_id,
        huge_event,
    )
}  # fmt: skip


# ------------------------------------------------------------------------------------------------------ what they are


async def api(peer: Peer, way: str) -> None:
    if way == "well":
        await peer.whole(b'{"fine": true}')
    else:
        await WAYS[way](peer)


async def streamable(peer: Peer, way: str, *, modern: bool) -> None:
    """MCP over streamable HTTP. Well until a tool is called, or the tools are listed."""
    asked = peer.asked
    if peer.method != "POST":
        await peer.whole(b"", status="405 Method Not Allowed")
    elif way == "mute":
        await hang(peer)
    elif "id" not in asked:
        await peer.whole(b"", status="202 Accepted")
    elif asked["method"] == "tools/call" and way in WAYS:
        await WAYS[way](peer)
    else:
        session = () if modern else ("Mcp-Session-Id: one",)
        await peer.whole(answer_of(asked, way, modern=modern), *session)


class Streams:
    """The open event streams of the HTTP+SSE servers, by path: answers go to the one opened last."""

    def __init__(self) -> None:
        self.open: dict[str, Peer] = {}

    async def serve(self, peer: Peer, way: str) -> None:
        if peer.method == "GET":
            self.open[way] = peer
            await peer.events()
            await peer.send(f"event: endpoint\ndata: /sse/{way}?s=1\n\n".encode())
            await asyncio.sleep(FOR_EVER_S)
            return
        asked, stream = peer.asked, self.open[way]
        called = asked.get("method") == "tools/call"
        if called and way in ("early_reset", "redirect"):
            await WAYS[way](peer)
            return
        await peer.whole(b"", status="202 Accepted")
        if called and way == "flood":
            while True:
                await stream.event(message(method="notifications/message", params={"level": "info", "data": "x"}))
        elif called and way == "wrong_id":
            await stream.event(message(id=asked["id"] + 1_000_000, result=text("for somebody else")))
        elif "id" in asked and not (called and way == "hang"):
            await stream.event(answer_of(asked, way, modern=False))


async def serve() -> None:
    streams = Streams()

    async def connected(reader: StreamReader, writer: StreamWriter) -> None:
        peer = Peer(reader, writer)
        try:
            while await peer.read():
                _, kind, way, *_rest = peer.path.split("?")[0].split("/")
                if kind == "http":
                    await api(peer, way)
                elif kind == "sse":
                    await streams.serve(peer, way)
                else:
                    await streamable(peer, way, modern=kind == "modern")
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the broker had enough
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0, limit=1 << 20)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve())
