"""What comes by npm for the tests against the world outside, in `.wire/` and nowhere else."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

WIRE = Path(__file__).parents[2] / ".wire"
BIN = WIRE / "node_modules" / ".bin"
PACKAGES = {
    "@modelcontextprotocol/inspector": "2.12.0",
    "@modelcontextprotocol/sdk": "1.32.2",
    "@modelcontextprotocol/client": "2.4.0",
    "@modelcontextprotocol/conformance": "0.2.0-alpha.12",
    "@anthropic-ai/claude-code": "~2.1.0",
    "oidc-provider": "9.13.3",
}
NODE = "24"  # installed as a package when the one on this machine is older than these clients want
OLDEST_NODE = 22
INSTALL_S = 300.0
INSTALL_TRIES = 3


class Failed(Exception):
    """A client did not do what it should; the message is what a person needs to see."""


def install() -> None:
    """What package.json asks for, into .wire/. Quick when nothing changed. Raises Failed."""
    wanted = {**PACKAGES, **({} if _node_major() >= OLDEST_NODE else {"node": NODE})}
    manifest = json.dumps({"private": True, "dependencies": wanted}, indent=2)
    done = WIRE / "installed.json"
    if done.exists() and done.read_text() == manifest:
        return
    WIRE.mkdir(exist_ok=True)
    (WIRE / "package.json").write_text(manifest)
    print("installing the clients into .wire/ …", flush=True)
    npm = ["npm", "install", "--no-audit", "--no-fund", "--loglevel=error"]
    said = ""
    for _ in range(INSTALL_TRIES):  # a registry that does not answer once is nothing of ours
        installed = subprocess.run(npm, cwd=WIRE, capture_output=True, text=True, timeout=INSTALL_S, check=False)
        if installed.returncode == 0:
            done.write_text(manifest)
            return
        said = f"npm install ended with {installed.returncode}:\n{installed.stderr[-2000:]}"
    raise Failed(said)


def _node_major() -> int:
    if shutil.which("node") is None:
        return 0
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    found = re.match(r"v(\d+)", version)
    return int(found[1]) if found else 0
