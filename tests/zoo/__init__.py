"""Servers that misbehave, one of each kind, beside one that does not: for the story about them and for the bench.

A beast is a way to misbehave; it is met over every transport on which it makes a difference. `server.py` is all that
speak HTTP, in one process of its own; `child.py` is one that speaks stdio. The tables below say what a call of each
must end in.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CALL_S = 1.5  # how long a call may take that ends in no other way
PATIENT_S = 30.0  # the same for one that ends by itself
START_S = 15.0
ANSWER_BYTES = 1_048_576
LIST_BYTES = 16_777_216  # for those with 100,000 tools
TOOLS = 200  # `max_tools`

TIMED_OUT = ("backend_timed_out", "unknown")
BROKEN = ("backend_broken", "unknown")
WITHHELD = ("answer_withheld", "done")
REJECTED = ("backend_rejected", "done")

# What a call of the tool ends in, over anything that is HTTP: code and effect.
HTTP: dict[str, tuple[str, str]] = {
    "hang": TIMED_OUT,
    "trickle": TIMED_OUT,
    "endless": WITHHELD,
    "bomb": WITHHELD,
    "reset": BROKEN,
    "early_reset": BROKEN,
    "redirect": REJECTED,
    "garbage": BROKEN,
    "html": WITHHELD,
}
# The same over MCP's streamable HTTP, of both eras, and what only events can do.
STREAMABLE: dict[str, tuple[str, str]] = {
    **HTTP,
    "comments": TIMED_OUT,
    "flood": TIMED_OUT,
    "progress": TIMED_OUT,
    "wrong_id": TIMED_OUT,
    "huge_event": WITHHELD,
}
# Over HTTP+SSE the answer travels on a stream that stands beside the call.
SSE: dict[str, tuple[str, str]] = {
    "hang": TIMED_OUT,
    "flood": TIMED_OUT,
    "wrong_id": TIMED_OUT,
    "early_reset": BROKEN,
    "redirect": REJECTED,
}
STDIO: dict[str, tuple[str, str]] = {
    "hang": TIMED_OUT,
    "flood": TIMED_OUT,
    "progress": TIMED_OUT,
    "wrong_id": TIMED_OUT,
    "noise": TIMED_OUT,
    "huge_line": WITHHELD,
    "exit": BROKEN,
    "shout": TIMED_OUT,
}
# A handshake-era stream that cannot be read further has broken, for all that is known.
LEGACY = {**STREAMABLE, "huge_event": BROKEN}
CALLED = {"http": HTTP, "modern": STREAMABLE, "legacy": LEGACY, "sse": SSE, "stdio": STDIO}

# Those that misbehave when they are asked what they have, or before: what becomes of the backend.
OFFERED: dict[str, str] = {
    "mute": "down",  # says nothing at all
    "many": "degraded",  # 100,000 tools
    "circle": "degraded",  # the same cursors again and again
    "pages": "degraded",  # a further page each time
    "crash_loop": "down",
}
STARTING = {"modern": ("mute", "many", "circle", "pages"), "legacy": ("many", "circle"), "stdio": (*OFFERED,)}


@dataclass(frozen=True, slots=True)
class Beast:
    """kind: http, modern, legacy, sse or stdio. way: how it misbehaves. expected: code and effect of a call; None for
    one that is not called.
    """

    kind: str
    way: str
    expected: tuple[str, str] | None

    @property
    def name(self) -> str:
        return f"{self.kind}_{self.way}"

    @property
    def timeout_s(self) -> float:
        return CALL_S if self.expected == TIMED_OUT else PATIENT_S

    @property
    def tool(self) -> str:
        return f"{self.name}_work"

    def manifest(self, url: str) -> str:
        """Its backend and its tool. url: of the server in `server.py`."""
        bounds = f"timeout: {self.timeout_s}s, response_bytes: {LIST_BYTES if self.way == 'many' else ANSWER_BYTES}"
        if self.kind == "http":
            return f"""---
kind: backend
name: {self.name}
http: {{base_url: "{url}/http/{self.way}", allow_private: true, {bounds}}}
---
kind: tool
name: {self.tool}
effect: write
scopes: [zoo]
backend: {self.name}
input: {{type: object}}
http: {{method: POST, path: /work}}
"""
        start = f"start_timeout: {START_S}s, max_tools: {TOOLS}"
        transport = "sse" if self.kind == "sse" else "streamable-http"
        where = (
            f"command: {[sys.executable, '-I', '-S', str(Path(__file__).with_name('child.py')), self.way]}"
            if self.kind == "stdio"
            else f'url: "{url}/{self.kind}/{self.way}", transport: {transport}, allow_private: true'
        )
        return f"""---
kind: backend
name: {self.name}
mcp: {{{where}, {bounds}, {start}}}
---
kind: import
name: {self.name}
backend: {self.name}
take: [work]
effect: write
scopes: [zoo]
tools: {{work: {{rename: {self.tool}}}}}
"""


BEASTS = [
    *(Beast(kind, way, expected) for kind, ways in CALLED.items() for way, expected in ways.items()),
    *(Beast(kind, way, None) for kind, ways in STARTING.items() for way in ways),
]
HEALTHY = [Beast(kind, "well", None) for kind in CALLED]


def manifests(well: str, beasts: str = "") -> str:
    """well, beasts: URLs of two runs of `server.py`, so that no beast takes the time of one that is well."""
    hostile = [beast.manifest(beasts) for beast in BEASTS] if beasts else []
    return "".join([*(one.manifest(well) for one in HEALTHY), *hostile])


@contextmanager
def serving(nice: int = 0) -> Generator[str]:
    """The URL of `server.py`, in a process of its own. nice: how much it leaves the processor to others."""
    command = ["nice", "-n", str(nice), sys.executable, "-m", "tests.zoo.server"]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()
