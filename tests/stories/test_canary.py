"""No secret in any sink: canaries go in wherever a secret may come from, and are looked for where anything comes out.

A served broker at debug level, real clients, real backends. Looked for as they are, and in base64, URL and hex form;
one that is planted is found in every sink that carries text, so that finding none means something. A new sink is one
line in `sinks`, a new source one line where it goes in.
"""

from __future__ import annotations

import base64
import gzip
import html
import re
import secrets
import sys
import threading
import time
import urllib.parse
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest

from broker.model.call import IDEMPOTENCY_META
from tests.command import broker, running
from tests.serving import modern, modern_call, modern_headers

PEER = Path(__file__).parents[1] / "stdio_peer.py"
SETTINGS = """
watch: false
log_level: debug
hold: {wait_s: 0}
listen: {port: 0}
record:
  checkpoints: {every_s: 1, webhook: "OUTSIDE/checkpoints"}
notify:
  - {name: desk, url: "OUTSIDE/notices", secret: "${file:notice.key}", events: [held, escalated, decided]}
TRACES"""
TRACES = """
traces: {url: "OUTSIDE/v1/traces", headers: ["x-key: ${file:trace.key}"]}
"""
MANIFESTS = """
kind: backend
name: api
http:
  base_url: "http://127.0.0.1:PORT"
  allow_private: true
  credential: {header: Authorization, value: "Bearer ${env:API_TOKEN}"}
---
kind: backend
name: child
mcp: {command: [PYTHON, "-I", "-S", PEER, LOG], env: {CHILD_TOKEN: "${env:CHILD_TOKEN}"}}
---
kind: tool
name: unkept
effect: write
scopes: [work]
backend: api
record: none
input: {type: object, properties: {text: {type: string, maxLength: 2000}, card: {type: string}}}
http: {method: POST, path: /work}
---
kind: tool
name: digested
effect: write
scopes: [work]
backend: api
record: digest
input: {type: object, properties: {text: {type: string}}}
http: {method: POST, path: /work}
---
kind: tool
name: refuse
effect: write
scopes: [work]
backend: api
record: none
input: {type: object, properties: {text: {type: string}}}
http: {method: POST, path: /refuse}
---
kind: tool
name: redacted
effect: write
scopes: [work]
backend: api
input: {type: object, properties: {password: {type: string}, api_key: {type: string}}}
http: {method: POST, path: /work}
---
kind: tool
name: kept
effect: write
scopes: [work]
backend: api
record: redacted
input: {type: object, properties: {text: {type: string}}}
http: {method: POST, path: /work}
---
kind: import
name: child
backend: child
take: [echo, exit]
effect: write
scopes: [work]
---
kind: policy
name: care
tools: [unkept]
rules:
  - {id: big, when: has(args.card), effect: hold, reason: a person must look}
  - {id: rest, when: "true", effect: allow}
"""


class Canaries:
    """Secrets by what they are. Each has characters that base64, URLs and HTML write in another way."""

    def __init__(self) -> None:
        self.of: dict[str, str] = {}

    def new(self, name: str) -> str:
        self.of[name] = f"canary+{name}+{secrets.token_hex(8)}"
        return self.of[name]

    def known(self, name: str, secret: str) -> str:
        """One that the broker made itself."""
        assert len(secret) >= 12
        self.of[name] = secret
        return secret

    def found_in(self, content: bytes) -> set[str]:
        return {name for name, secret in self.of.items() if any(form in content for form in forms(secret))}


def forms(secret: str) -> set[bytes]:
    """As it is, percent-encoded, in hex, and in both base64 alphabets at each of three offsets, without the ends that
    depend on what stands beside it.
    """
    raw = secret.encode()
    shifted = [base64.b64encode(b"\0" * offset + raw)[4 if offset else 0 : -4] for offset in range(3)]
    return {
        raw,
        urllib.parse.quote(secret, safe="").encode(),
        urllib.parse.quote_plus(secret).encode(),
        raw.hex().encode(),
        raw.hex().upper().encode(),
        secret.replace("+", "&#43;").encode(),
        *shifted,
        *(one.translate(bytes.maketrans(b"+/", b"-_")) for one in shifted),
    }


def test_a_canary_is_found_in_every_form() -> None:
    canaries = Canaries()
    secret = canaries.new("x")
    for text in (secret, urllib.parse.quote(secret, safe=""), secret.encode().hex(), f'<a title="{secret}">'):
        assert canaries.found_in(f"... {text} ...".encode()) == {"x"}
    for offset in range(4):
        around = b"u" * offset + secret.encode() + b"::more"
        assert canaries.found_in(base64.b64encode(around)) == {"x"}
        assert canaries.found_in(base64.urlsafe_b64encode(around)) == {"x"}
    assert canaries.found_in(b"canary+x+0123") == set()


@dataclass
class House:
    folder: Path
    url: str
    pid: int
    http: httpx2.Client
    canaries: Canaries
    answers: list[tuple[str, bytes]] = field(default_factory=list[tuple[str, bytes]])

    def post(self, body: Any, headers: Mapping[str, str]) -> Any:
        content = body if isinstance(body, bytes) else orjson.dumps(body)
        answer = self.http.post(f"{self.url}/mcp", content=content, headers=dict(headers))
        self.keep(answer)
        return answer.json()

    def call(self, tool: str, arguments: Mapping[str, Any], token: str, **meta: Any) -> dict[str, Any]:
        headers = {
            **modern_headers("tools/call", tool, token=token),
            "Cookie": f"session={self.canaries.of['cookie']}",
            "Proxy-Authorization": f"Bearer {self.canaries.of['proxy-token']}",
            "X-Api-Key": self.canaries.of["header"],
            "Baggage": f"key={self.canaries.of['baggage']}",
        }
        said: dict[str, Any] = self.post(modern_call(tool, arguments, **meta), headers)
        return said.get("result", said)

    def keep(self, answer: httpx2.Response) -> None:
        """What anybody was told."""
        head = "\n".join(f"{name}: {value}" for name, value in answer.headers.items() if name != "set-cookie")
        self.answers.append((answer.url.path, head.encode() + b"\n" + answer.content))


def ok(*words: str, cwd: Path, stdin: str = "") -> str:
    said = broker(*words, cwd=cwd, stdin=stdin)
    assert said.code == 0, said.err
    return said.out


# ---------------------------------------------------------------------------------------------------- the other sides


class Echo(ThreadingHTTPServer):
    """An API that refuses with everything it was sent, its credential above all, and sets cookies."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Echo)
        self.received: list[Mapping[str, str]] = []
        self.cookie = ""


class _Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        assert isinstance(self.server, Echo)
        self.rfile.read(int(self.headers["content-length"]))
        sent = {name.lower(): value for name, value in self.headers.items()}
        self.server.received.append(sent)
        refused = self.path == "/refuse"
        body = orjson.dumps({"detail": f"not with {sent['authorization']}"} if refused else {"done": True})
        self.send_response(422 if refused else 200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.send_header("set-cookie", f"session={self.server.cookie}")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 – the library's name
        """Say nothing."""


class Outside(ThreadingHTTPServer):
    """Whoever is told by HTTP: a collector, receivers of webhooks. What was said to each path, unpacked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Outside)
        self.told: dict[str, bytes] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def until(self, path: str, content: bytes) -> None:
        end = time.monotonic() + 30
        while content not in self.told.get(path, b""):
            assert time.monotonic() < end, f"{path} is not told: {self.told.keys()}"
            time.sleep(0.05)


class _Outside(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        assert isinstance(self.server, Outside)
        body = self.rfile.read(int(self.headers["content-length"]))
        body = gzip.decompress(body) if self.headers["content-encoding"] == "gzip" else body
        heads = "".join(f"{name}: {value}\n" for name, value in self.headers.items() if name.lower() != "x-key")
        self.server.told[self.path] = self.server.told.get(self.path, b"") + heads.encode() + body
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 – the library's name
        """Say nothing."""


@pytest.fixture
def outside() -> Generator[Outside]:
    with Outside() as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        serving.start()
        yield server
        server.shutdown()
        serving.join()


@pytest.fixture
def api() -> Generator[Echo]:
    with Echo() as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        serving.start()
        yield server
        server.shutdown()
        serving.join()


@contextmanager
def house(folder: Path, api: Echo, outside: Outside, canaries: Canaries) -> Generator[House]:
    (folder / "tool_manifests").mkdir()
    text = MANIFESTS.replace("PORT", str(api.server_port)).replace("PYTHON", sys.executable)
    text = text.replace("PEER", str(PEER)).replace("LOG", str(folder / "child.log"))
    (folder / "tool_manifests" / "tools.yaml").write_text(text)
    settings = SETTINGS.replace("TRACES", TRACES if find_spec("opentelemetry.sdk") else "")
    (folder / "broker.yaml").write_text(settings.replace("OUTSIDE", outside.url))
    for name in ("notice", "trace"):
        (folder / f"{name}.key").write_text(canaries.new(f"secret of a {name}"))
    variables = ("API_TOKEN", "CHILD_TOKEN", "OF_NOBODY")
    given = {name: canaries.new(name.lower()) for name in variables}
    with (
        (folder / "said").open("w+") as said,
        running("serve", "--port", "0", cwd=folder, env=given, stderr=said) as process,
        httpx2.Client(timeout=20, trust_env=False, follow_redirects=True) as http,
    ):
        until = time.monotonic() + 30
        while "/mcp" not in (told := (folder / "said").read_text()):
            assert time.monotonic() < until and process.poll() is None, told
            time.sleep(0.05)
        line = next(line for line in told.splitlines() if "/mcp" in line)
        url = f"http://127.0.0.1:{line.split('/mcp')[0].rpartition(':')[2]}"
        yield House(folder, url, process.pid, http, canaries)


# -------------------------------------------------------------------------------------------- where secrets come from


def go_through_everything(one: House) -> None:
    """Every face, with a canary wherever a secret may stand."""
    canaries, folder = one.canaries, one.folder
    token = canaries.known("api key", ok("token", "--api-key", "bot", "--scope", "work", cwd=folder).strip())
    for name in ("cookie", "proxy-token", "header", "baggage", "wrong token", "token in query", "basic"):
        canaries.new(name)
    arguments = {
        "unkept": {"text": canaries.new("argument of none")},
        "digested": {"text": canaries.new("argument of digest")},
        "redacted": {"password": canaries.new("argument by name"), "api_key": canaries.new("key by name")},
        "refuse": {"text": canaries.new("argument refused")},
        "echo": {"token": canaries.new("argument of a child")},
        "exit": {"token": canaries.new("argument of a crash")},
    }
    for tool, given in arguments.items():
        said = one.call(tool, given, token, **{IDEMPOTENCY_META: canaries.new(f"idempotency key of {tool}")})
        assert said["isError"] == (tool in ("refuse", "exit")), (tool, said)
        if tool == "echo":  # the caller's own text, which it gets back
            one.answers.pop()
    held = one.call("unkept", {"card": canaries.new("argument of a held call")}, token)
    assert held["structuredContent"]["code"] == "held"
    one.call("unkept", {"text": 1, "nope": canaries.new("argument that does not fit")}, token)
    one.call("no_such_tool", {"text": canaries.new("argument of nothing")}, token)
    refused_at_the_gate(one, token)
    sign_in(one)
    ok("approve", held["structuredContent"]["hold_id"], "--wait", "10", cwd=folder)
    one.keep(one.http.get(f"{one.url}/console/calls"))


def refused_at_the_gate(one: House, token: str) -> None:
    canaries = one.canaries
    headers = modern_headers("tools/call", "unkept", token=canaries.of["wrong token"])
    one.post(modern_call("unkept"), headers)
    one.post(modern_call("unkept"), {**headers, "Authorization": f"Basic {canaries.of['basic']}"})
    query = urllib.parse.quote(canaries.of["token in query"], safe="")
    one.keep(one.http.post(f"{one.url}/mcp?access_token={query}", json=modern_call("unkept"), headers=headers))
    good = modern_headers("tools/call", "unkept", token=token)
    for name, body in (
        ("cut off", b'{"jsonrpc": "2.0", "id": 1, "params": {"text": "SECRET'),
        ("key twice", b'{"jsonrpc": "2.0", "id": 1, "SECRET": 1, "SECRET": 2}'),
        ("not UTF-8", b'{"jsonrpc": "2.0", "id": 1, "method": "SECRET\xff"}'),
        ("meta", b'{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"_meta": {"SECRET": "SECRET"}}}'),
    ):
        one.post(body.replace(b"SECRET", canaries.new(name).encode()), good)


def sign_in(one: House) -> None:
    """A person at the console and a client at the authorization server, each with a wrong secret first."""
    canaries, folder, http = one.canaries, one.folder, one.http
    password = canaries.new("password")
    scopes = ("--scope", "broker.review", "--scope", "broker.audit")
    ok("user", "add", "rita", *scopes, "--password-stdin", cwd=folder, stdin=f"{password}\n")
    for tried in (canaries.new("wrong password"), password):
        page = http.get(f"{one.url}/console")
        form = {name: _hidden(page.text, name) for name in ("csrf", "request")}
        form |= {"name": "rita", "password": tried}
        landed = http.post(f"{one.url}/oauth/sign-in", data=form, headers={"Origin": one.url})
        one.keep(landed)
    assert landed.url.path.startswith("/console"), landed.text
    for name, value in http.cookies.items():
        canaries.known(f"cookie {name}", value)
    client = orjson.loads(ok("client", "add", "agent", "--scope", "work", "--owner", "rita", "--json", cwd=folder))
    secret = canaries.known("client secret", client["client_secret"])
    for tried in (canaries.new("wrong client secret"), secret):
        answer = http.post(f"{one.url}/oauth/token", data={"grant_type": "client_credentials"}, auth=("agent", tried))
    canaries.known("access token", answer.json()["access_token"])
    one.post(modern("tools/list"), modern_headers("tools/list", token=canaries.of["access token"]))


def _hidden(page: str, name: str) -> str:
    found = re.search(rf'name="{name}" value="([^"]*)"', page)
    assert found, page
    return html.unescape(found[1])


# ------------------------------------------------------------------------------------------ where anything comes out


def follow(one: House, outside: Outside) -> None:
    """The record handed on as it is written, by webhook and by OTLP, up to what is in it now."""
    secret = one.canaries.new("secret of the siem")
    (one.folder / "siem.key").write_text(secret)
    last = orjson.loads(ok("log", "--json", "--limit", "1", cwd=one.folder))[0]["call_id"]
    ways = {
        "/siem": ("--webhook", f"{outside.url}/siem", "--secret", "${file:siem.key}"),
        "/v1/logs": ("--otlp", f"{outside.url}/v1/logs"),
    }
    for path, way in ways.items():
        with running("export", "--follow", "--from-first", "--name", path, *way, cwd=one.folder):
            outside.until(path, last.encode())


def as_table(folder: Path) -> bytes:
    """An export for analysis, read as whoever analyses does: its pages are packed."""
    if not find_spec("pyarrow"):
        return b""
    parquet: Any = import_module("pyarrow.parquet")
    ok("export", "--format", "parquet", "--output", "calls.parquet", cwd=folder)
    return repr(parquet.read_table(folder / "calls.parquet").to_pylist()).encode()


def sinks(one: House, children: Mapping[int, str], outside: Outside) -> dict[str, bytes]:
    """Everything that leaves the broker, by what it is. children: what each process showed, while it ran."""
    folder = one.folder
    table = {"calls.parquet, read": as_table(folder)}
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and ".key" not in path.name}
    sent = {f"told {path}": content for path, content in outside.told.items()}
    assert {"broker.db", "said"} <= set(files)
    told = {
        " ".join(words): (said := broker(*words, cwd=folder)).out.encode() + said.err.encode() for words in COMMANDS
    }
    pages = {f"answer {place} {path}": answer for place, (path, answer) in enumerate(one.answers)}
    shown = {f"process {pid}": text.encode() for pid, text in children.items()}
    return {**table, **files, **sent, **told, **pages, **shown}


COMMANDS = (
    ("log", "--json", "--limit", "1000"),
    ("log",),
    ("export",),
    ("export", "--format", "csv"),
    ("export", "--format", "cef"),
    ("holds", "--all", "--json"),
    ("quotas", "--json"),
    ("tools", "--json"),
    ("doctor",),
    ("verify",),
)
PAGES = (
    "/console",
    "/console/calls",
    "/console/catalog",
    "/console/backends",
    "/console/record",
    "/metrics",
    "/readyz",
)


def of_processes(pid: int) -> dict[int, str]:
    """Arguments and environment of this process's descendants; of itself only the arguments."""
    parents = {
        int(path.name): int(path.joinpath("stat").read_text().rpartition(")")[2].split()[1])
        for path in Path("/proc").iterdir()
        if path.name.isdigit() and path.joinpath("stat").exists()
    }
    family = {pid}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    shown = {one: Path(f"/proc/{one}/cmdline").read_text().replace("\0", " ") for one in family}
    for child in family - {pid}:
        shown[child] += Path(f"/proc/{child}/environ").read_text().replace("\0", " ")
    return shown


def test_no_secret_is_in_any_sink_and_a_planted_one_is_found(tmp_path: Path, api: Echo, outside: Outside) -> None:
    if not Path("/proc/self/environ").exists():
        pytest.skip("environments of processes are read from /proc, which is not there")
    canaries, planted = Canaries(), Canaries()
    api.cookie = canaries.new("cookie of a backend")
    with house(tmp_path, api, outside, canaries) as one:
        go_through_everything(one)
        token = canaries.of["api key"]
        said = one.call("kept", {"text": planted.new("kept")}, token)
        assert not said["isError"]
        children = of_processes(one.pid)
        assert len(children) >= 3, "the child and its guard"
        for path in PAGES:
            one.keep(one.http.get(one.url + path))
        follow(one, outside)
        outside.until("/notices", b"hold.decided")
        live = sinks(one, children, outside)
    left = sinks(one, {}, outside)
    assert {"told /checkpoints", "told /notices", "told /siem", "told /v1/logs"} <= set(left)
    assert "told /v1/traces" in left or not find_spec("opentelemetry.sdk")
    found = {name: names for name, content in {**live, **left}.items() if (names := canaries.found_in(content))}
    # What a child is given is in its own environment, and what is to be decided is before its reviewer's eyes.
    own = {name for name, names in found.items() if name.startswith("process") and names == {"child_token"}}
    inbox = {
        name for name, names in found.items() if name.endswith(" /console") and names == {"argument of a held call"}
    }
    assert own and inbox
    assert {name: names for name, names in found.items() if name not in own | inbox} == {}
    assert b'"level":"info"' in live["said"], "it was told to say all"
    with_planted = {name for name, content in live.items() if planted.found_in(content)}
    assert {"log --json --limit 1000", "export", "told /siem"} <= with_planted
    assert "calls.parquet, read" in with_planted or not find_spec("pyarrow")
    assert with_planted & {"broker.db", "broker.db-wal"}
    for sent in api.received:
        assert canaries.found_in(repr({**sent, "authorization": ""}).encode()) <= {"idempotency"}
        assert sent["authorization"] == f"Bearer {canaries.of['api_token']}"
