"""A beast that speaks stdio: `python -I -S child.py WAY`. Standard library only: it starts in 20 ms."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.zoo.mcp import answer_of, message, text

WAY = sys.argv[1]


def send(line: bytes) -> None:
    sys.stdout.buffer.write(line + b"\n")
    sys.stdout.buffer.flush()


def misbehave(request: int, token: object) -> None:
    """One call of its tool."""
    if WAY == "exit":
        sys.exit(3)
    if WAY == "wrong_id":
        send(message(id=request + 1_000_000, result=text("for somebody else")))
    if WAY == "huge_line":
        sys.stdout.buffer.write(message(id=request, result=text("x" * 8_000_000)) + b"\n")
        sys.stdout.buffer.flush()
    while WAY == "flood":
        send(message(method="notifications/message", params={"level": "info", "data": "x"}))
    while WAY == "progress":
        send(message(method="notifications/progress", params={"progressToken": token, "progress": 1}))
    while WAY == "noise":
        send(b"DEBUG this is a line of a log on stdout " * 20)
    while WAY == "shout":
        sys.stderr.write("something is very wrong " * 40 + "\n")


def main() -> None:
    if WAY == "crash_loop":
        sys.stderr.write("no configuration\n")
        sys.exit(1)
    while WAY == "mute":
        time.sleep(60)
    for line in sys.stdin:
        asked = json.loads(line)
        if "id" not in asked:
            continue
        if asked["method"] == "tools/call" and WAY != "well":
            misbehave(asked["id"], asked["params"].get("_meta", {}).get("progressToken"))
        else:
            send(answer_of(asked, WAY, modern=False))


main()
