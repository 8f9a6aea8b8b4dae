"""The thing behind the broker while it is measured: an HTTP service that answers each body with itself.

It has to be so cheap that what is measured is not it: a bare protocol on uvloop, no framework, no parsing of JSON.
Prints its URL once it listens. Ends with SIGTERM.
"""

from __future__ import annotations

import asyncio
import re
from typing import cast

import uvloop

LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: "


class Echo(asyncio.Protocol):
    """Keep-alive and pipelining; a request without Content-Length has no body."""

    def __init__(self) -> None:
        self._waiting = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own class does not inherit it

    def data_received(self, data: bytes) -> None:
        data = self._waiting + data
        while (end := data.find(b"\r\n\r\n")) >= 0:
            length = LENGTH.search(data, 0, end + 2)
            body_end = end + 4 + (int(length[1]) if length else 0)
            if len(data) < body_end:
                break
            body = data[end + 4 : body_end] or b"{}"
            self._transport.write(HEAD + str(len(body)).encode() + b"\r\n\r\n" + body)
            data = data[body_end:]
        self._waiting = data


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", 0, backlog=1024)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
