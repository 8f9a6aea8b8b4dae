"""Serve the order service: `ORDERS_TOKEN=… python -m examples.orders --port 0 --database orders.db`.

Prints one line with its URL as soon as it can be reached; everything else goes to stderr. SIGTERM and Ctrl-C end it.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
from pathlib import Path

import uvicorn

from .app import make_app
from .book import Book


def main() -> int:
    parser = argparse.ArgumentParser(prog="examples.orders", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--port", type=int, default=8790, help="0 takes a free one")
    parser.add_argument(
        "--database", type=Path, default=Path("orders.db"), help="made and seeded when it does not exist"
    )
    chosen = parser.parse_args()
    token = os.environ.get("ORDERS_TOKEN", "")
    if not token:
        print("Set ORDERS_TOKEN to the credential callers have to present.", file=sys.stderr)
        return 2
    listener = socket.create_server(("127.0.0.1", chosen.port))
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    config = uvicorn.Config(make_app(Book(chosen.database), token), log_level="warning", lifespan="off")
    uvicorn.Server(config).run(sockets=[listener])
    return 0


if __name__ == "__main__":
    sys.exit(main())
