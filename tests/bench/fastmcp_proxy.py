"""FastMCP's proxy, for comparison: PORT UPSTREAM [tuned]. Runs in a virtual environment of its own.

As its documentation shows it, or tuned: one connected client for all calls, and tokens verified as the broker's are.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from fastmcp import Client  # pyright: ignore
from fastmcp.server import create_proxy  # pyright: ignore
from fastmcp.server.auth.providers.jwt import JWTVerifier, RSAKeyPair  # pyright: ignore


def documented(port: int, upstream: str) -> None:
    create_proxy(upstream, name="proxy").run(transport="http", host="127.0.0.1", port=port, show_banner=False)


async def tuned(port: int, upstream: str) -> None:
    keys = RSAKeyPair.generate()
    verifier = JWTVerifier(public_key=keys.public_key, issuer="bench", audience="bench")
    Path("fastmcp.token").write_text(keys.create_token(subject="bench", issuer="bench", audience="bench"))
    async with Client(upstream) as client:
        proxy = create_proxy(client, name="proxy")
        proxy.auth = verifier
        await proxy.run_http_async(
            host="127.0.0.1", port=port, show_banner=False, log_level="warning", stateless_http=True
        )


if __name__ == "__main__":
    if len(sys.argv) > 3:
        asyncio.run(tuned(int(sys.argv[1]), sys.argv[2]))
    else:
        documented(int(sys.argv[1]), sys.argv[2])
