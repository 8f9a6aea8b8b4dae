"""Real clients that come by npm, each against a real `broker serve`: list the tools, call one.

    MCP Inspector CLI     streamable HTTP in both eras, SSE, stdio
    TypeScript SDK v1     streamable HTTP, SSE, stdio
    TypeScript SDK v2     the same in the handshake era, and negotiating the newest revision
    Claude Code           `claude mcp list` says Connected, over HTTP with a token and over stdio
    oidc-provider         an agent's token and a person's sign-in by an identity provider that is not ours

They are installed into `.wire/` (only when something changed) and run with a home of their own, so that nothing of the
person who runs this is read or written. `make test` does not need npm; this does, and says so when there is none.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from examples.demo.house import BROKER, House, HouseError, open_house
from tests.wire import oidc
from tests.wire.npm import BIN, WIRE, Failed, install

HERE = Path(__file__).parent
CLIENT_S = 60.0

TOOL = "orders_get"
ARGUMENTS = {"order_id": "1002"}
ANSWER = "Office chair"
SCOPES = ("orders.read", "orders.refund", "handbook.read")


# ------------------------------------------------------------------------------------------------------- the clients


@dataclass(slots=True)
class Bench:
    """What every check needs. home: an empty home for the clients; base_url: of a server that plays Anthropic."""

    house: House
    token: str
    home: Path
    base_url: str
    results: list[tuple[str, float, str]] = field(default_factory=list[tuple[str, float, str]])

    @property
    def stdio_command(self) -> list[str]:
        return [*BROKER, "--config", str(self.house.settings), "serve", "--stdio"]

    def environment(self, further: Mapping[str, str] = {}) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("LANG", "TMPDIR") if name in os.environ}
        path = os.pathsep.join([str(BIN), self.house.environment["PATH"]])
        orders_token = self.house.environment["ORDERS_TOKEN"]
        return {**kept, "PATH": path, "HOME": str(self.home), "NO_COLOR": "1", "ORDERS_TOKEN": orders_token, **further}

    def run(self, command: Iterable[str], further: Mapping[str, str] = {}) -> str:
        """A client that ends by itself. Returns what it printed. Raises Failed when it did not end well."""
        arguments = list(command)
        try:
            done = subprocess.run(
                arguments,
                cwd=self.home,
                env=self.environment(further),
                capture_output=True,
                text=True,
                timeout=CLIENT_S,
                check=False,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired as error:
            raise Failed(f"did not end within {CLIENT_S:.0f} s") from error
        if done.returncode != 0:
            raise Failed(f"exit code {done.returncode}: {(done.stderr or done.stdout).strip()[-800:]}")
        return done.stdout

    def check(self, name: str, does: Callable[[], None]) -> None:
        began = time.monotonic()
        try:
            does()
            trouble = ""
        except Failed as fault:
            trouble = str(fault)
        self.results.append((name, time.monotonic() - began, trouble))
        print(f"{'FAILED' if trouble else 'passed'}  {name}  {time.monotonic() - began:.1f} s", flush=True)
        if trouble:
            print("        " + trouble.replace("\n", "\n        "), flush=True)


def expect_tools(names: Iterable[str]) -> None:
    if TOOL not in set(names):
        raise Failed(f"{TOOL} is not in the list: {sorted(names)}")


def expect_answer(result: Mapping[str, Any]) -> None:
    if result.get("isError") or ANSWER not in json.dumps(result):
        raise Failed(f"the answer is not order 1002: {json.dumps(result)[:600]}")


def inspector(bench: Bench, transport: str, *era: str) -> None:
    if transport == "stdio":
        # --config is an option of its own, so the settings file is named by the environment
        environment = {
            "ORDERS_TOKEN": bench.house.environment["ORDERS_TOKEN"],
            "BROKER_CONFIG": str(bench.house.settings),
        }
        named = [word for name, value in environment.items() for word in ("-e", f"{name}={value}")]
        target = [*named, *BROKER, "serve", "--stdio"]
    else:
        target = [
            url_of(bench, transport),
            "--transport",
            transport,
            "--header",
            f"Authorization: Bearer {bench.token}",
        ]
    command = ["inspector", "--cli", *target, *era, "--format", "json", "-q"]
    listed = json.loads(bench.run([*command, "--method", "tools/list"]))
    expect_tools(tool["name"] for tool in listed.get("result", listed)["tools"])
    pairs = [f"{name}={json.dumps(value)}" for name, value in ARGUMENTS.items()]  # 1002 alone would be a number
    called = json.loads(bench.run([*command, "--method", "tools/call", "--tool-name", TOOL, "--tool-arg", *pairs]))
    expect_answer(called.get("result", called))


def typescript(bench: Bench, script: str, transport: str, era: str = "legacy") -> None:
    shutil.copy(HERE / script, WIRE / script)  # modules are found from where the script lies
    environment = {
        "WIRE_TRANSPORT": transport,
        "WIRE_URL": url_of(bench, transport),
        "WIRE_TOKEN": bench.token,
        "WIRE_COMMAND": json.dumps(bench.stdio_command),
        "WIRE_TOOL": TOOL,
        "WIRE_ARGUMENTS": json.dumps(ARGUMENTS),
        "WIRE_ERA": era,
    }
    said = json.loads(bench.run(["node", str(WIRE / script)], environment))
    expect_tools(said["tools"])
    expect_answer(said["result"])
    if era == "auto" and said.get("version") != "2026-07-28":
        raise Failed(f"negotiated {said.get('version')!r}, not 2026-07-28")


def claude_code(bench: Bench, transport: str) -> None:
    environment = {
        "CLAUDE_CONFIG_DIR": str(bench.home / f"claude-{transport}"),
        "ANTHROPIC_BASE_URL": bench.base_url,  # it waits long for an answer from there before it looks at anything
        "ANTHROPIC_API_KEY": "unused",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
    }
    if transport == "http":
        header = f"Authorization: Bearer {bench.token}"
        added = ["--transport", "http", "broker", url_of(bench, "http"), "--header", header]
    else:
        added = ["broker", "--", *bench.stdio_command]
    bench.run(["claude", "mcp", "add", "--scope", "user", *added], environment)
    said = bench.run(["claude", "mcp", "list"], environment)
    if not re.search(r"^broker: .*Connected$", said, re.MULTILINE):
        raise Failed(f"claude mcp list says:\n{said}")


def url_of(bench: Bench, transport: str) -> str:
    return f"{bench.house.broker_url}/{'sse' if transport == 'sse' else 'mcp'}"


# --------------------------------------------------------------------------------------------------------- the table


def check_all(bench: Bench) -> None:
    for transport in ("http", "sse", "stdio"):
        bench.check(f"Inspector CLI, {transport}", lambda to=transport: inspector(bench, to))
    bench.check("Inspector CLI, http, 2026-07-28", lambda: inspector(bench, "http", "--protocol-era", "modern"))
    for transport in ("http", "sse", "stdio"):
        bench.check(f"TypeScript SDK v1, {transport}", lambda to=transport: typescript(bench, "sdk_v1.mjs", to))
    for transport in ("http", "sse", "stdio"):
        bench.check(f"TypeScript SDK v2, {transport}", lambda to=transport: typescript(bench, "sdk_v2.mjs", to))
    for transport in ("http", "stdio"):
        name = f"TypeScript SDK v2, {transport}, 2026-07-28"
        bench.check(name, lambda to=transport: typescript(bench, "sdk_v2.mjs", to, "auto"))
    for transport in ("http", "stdio"):
        bench.check(f"Claude Code, {transport}", lambda to=transport: claude_code(bench, to))
    bench.check("oidc-provider, a token at /mcp and a sign-in to the console", oidc.check)


class Anything(http.server.BaseHTTPRequestHandler):
    """Answers every request with an empty JSON object."""

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", "2")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(b"{}")

    do_GET = do_POST = do_HEAD = answer

    def log_message(self, *args: object) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] – says less
        """Says nothing: what the clients ask here is of no interest."""


@contextlib.contextmanager
def answering() -> Generator[str]:
    """A server that answers anything, on loopback, so that no client waits for the outside world."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Anything)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


def main() -> int:
    if shutil.which("npm") is None:
        print("npm is not installed, so the clients that come by npm are not tried.")
        return 0
    with tempfile.TemporaryDirectory(prefix="broker-wire-") as scratch:
        try:
            install()
            with open_house(Path(scratch) / "house") as house, answering() as base_url:
                home = Path(scratch) / "home"
                home.mkdir()
                bench = Bench(house, house.register("support-bot", SCOPES), home, base_url)
                check_all(bench)
        except (Failed, HouseError) as fault:
            print(f"The clients could not be tried: {fault}", file=sys.stderr)
            return 1
    failed = sum(bool(trouble) for _, _, trouble in bench.results)
    print(f"\n{len(bench.results) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
