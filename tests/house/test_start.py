"""What a broker has imported when it is ready: nothing that costs start and memory and may never be needed.

The rest is imported when something needs it: the console, the API and the sign-in pages by the first request for one of
their paths, what judges tokens by the first token, the SDK by the first request that goes on to it or an MCP backend.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import broker

LATER = {
    "mcp": "the SDK",
    "starlette": "pages and the API",
    "jinja2": "pages",
    "authlib": "the embedded issuer",
    "argon2": "the embedded issuer",
    "joserfc": "tokens",
    "cryptography": "tokens, sealed payloads, checkpoints",
    "httpx2": "clients of libraries",
    "cel_expr_python": "rules that are more than a comparison",
    "google": "its library",
    "click": "the HTTP server's command line",
    "typer": "the command line",
    "rich": "tables of commands",
    "mcp_types": "the SDK",
    "pygments": "rich",
    "jmespath": "tools that select from an answer",
    "zipfile": "the search for plug-ins of pydantic",
    "sqlite_utils": "a database whose schema is to be changed",
}

MANIFEST = """\
kind: backend
name: upstream
http: {base_url: "http://127.0.0.1:9", allow_private: true}
---
kind: tool
name: echo
owner: us
description: Answers what it is sent.
effect: write
scopes: [echo]
backend: upstream
input: {type: object, properties: {n: {type: integer}}, required: [n], additionalProperties: false}
http: {method: POST, path: /echo}
---
kind: policy
name: all
tools: [echo]
rules: [{id: usual, when: args.n >= 0, effect: allow}]
"""

SERVE = """\
import os, signal, sys
from broker.__main__ import main
from broker.faces.cli import serving

def ready(*_):
    print(*sorted({name.partition(".")[0] for name in sys.modules}), flush=True)
    os.kill(os.getpid(), signal.SIGTERM)

serving.tell = ready
sys.argv = ["broker", "serve", "--port", "0"]
main()
"""


def test_a_ready_broker_has_imported_nothing_heavy_that_may_never_be_needed(tmp_path: Path) -> None:
    (tmp_path / "tool_manifests").mkdir()
    (tmp_path / "tool_manifests" / "all.yaml").write_text(MANIFEST)
    for _ in ("makes the database", "finds it made"):
        served = subprocess.run([sys.executable, "-c", SERVE], cwd=tmp_path, capture_output=True, text=True, check=True)
    imported = set(served.stdout.split())
    assert "orjson" in imported
    assert {name: why for name, why in LATER.items() if name in imported} == {}


def test_data_classes_are_made_cheaply() -> None:
    """Those of the standard library compile six functions each: see `broker.data`. The verifier shares no code."""
    dear = [
        str(path)
        for path in Path(broker.__file__).parent.rglob("*.py")
        if "verifier" not in path.parts and path.name != "data.py"
        if re.search(r"^from dataclasses import .*\bdataclass\b", path.read_text("utf-8"), re.MULTILINE)
    ]
    assert dear == []
