"""A stdio MCP server without the SDK, as old as the handshake and as bad as a test wants it. Starts in 20 ms.

    python -I -S stdio_peer.py [LOG] [MODE ...]

LOG gets one line for each start and each message received. Modes: `deaf` (ignores SIGTERM and the end of stdin),
`child` (has a child that sleeps), `dies` (ends after the handshake), `noisy` (prints to stdout),
`circle`, `many`, `twice` (odd lists), `mute` (never answers).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

LOG, MODES = sys.argv[1], sys.argv[2:]
TOOLS = ["echo", "env", "hang", "big", "broken", "exit", "pid", "progress", "fail", "odd", "change"]


def note(line: str) -> None:
    with open(LOG, "a") as log:  # noqa: PTH123 – no pathlib: it would double the start-up time
        log.write(line + "\n")


def send(**message: Any) -> None:
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def entry(name: str) -> dict[str, Any]:
    return {"name": name, "inputSchema": {"type": "object"}, "x-unknown": {"kept": True}}


def text(value: str, **more: Any) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": value, "x-block": 1}], **more}


def tools(cursor: str | None) -> dict[str, Any]:
    if "circle" in MODES:
        return {"tools": [entry(f"t{cursor}")], "nextCursor": "b" if cursor == "a" else "a"}
    if "many" in MODES:
        return {"tools": [entry(f"t{n}") for n in range(50)]}
    if "twice" in MODES:
        return {"tools": [entry("a"), entry("a"), {"name": "no schema"}, {"inputSchema": {}}, 5, entry("b")]}
    return {"tools": [entry(name) for name in TOOLS]}


def call(request: int, name: str, arguments: dict[str, Any], meta: dict[str, Any]) -> None:
    if name == "echo":
        send(id=request, result=text(json.dumps(arguments), structuredContent={"meta": meta}, extra={"kept": 1}))
    elif name == "env":
        seen = {"env": dict(os.environ), "cwd": os.getcwd(), "argv": sys.argv[1:]}  # noqa: PTH109 – as above
        send(id=request, result=text(json.dumps(seen)))
    elif name == "big":
        send(id=request, result=text("x" * 2_000_000))
    elif name == "broken":
        send(id=request, result={"content": [float("nan")]})
    elif name == "exit":
        sys.stderr.write("the disk is on fire\n")
        sys.exit(3)
    elif name == "pid":
        send(id=request, result=text(f"{os.getpid()} {CHILD}"))
    elif name == "progress":
        for step in (1, 2):
            params = {"progressToken": meta["progressToken"], "progress": step, "total": 2, "message": "go\x1b[31m"}
            send(method="notifications/progress", params=params)
        send(id=request, result=text("done"))
    elif name == "fail":
        send(id=request, error={"code": -32602, "message": "no such \u202e order", "data": {"token": "x"}})
    elif name == "odd":
        send(id=request, result={"content": "not a list"})
    elif name == "change":
        TOOLS.append("added")
        send(method="notifications/tools/list_changed")
        send(id=request, result=text("changed"))


def answer(message: dict[str, Any]) -> None:
    method, request = message.get("method"), message.get("id")
    params: dict[str, Any] = message.get("params") or {}
    note(str(method))
    if request is None or "mute" in MODES:
        return
    if method == "initialize":
        capabilities = {"tools": {"listChanged": True}}
        info = {"name": "peer", "version": "1"}
        result = {"protocolVersion": "2025-06-18", "capabilities": capabilities, "serverInfo": info}
        send(id=request, result=result)
    elif method == "tools/list":
        send(id=request, result=tools(params.get("cursor")))
        if "dies" in MODES:
            sys.stderr.write("I never feel well\n")
            sys.exit(1)
    elif method == "tools/call":
        call(request, params["name"], params.get("arguments") or {}, params.get("_meta") or {})
    else:
        send(id=request, error={"code": -32601, "message": "Method not found"})


CHILD = (
    subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"]).pid if "child" in MODES else 0
)
note("start")
if "deaf" in MODES:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "noisy" in MODES:
    print("starting up…\n{oops\n\n{}")
for line in sys.stdin:
    answer(json.loads(line))
while "deaf" in MODES:
    time.sleep(60)
