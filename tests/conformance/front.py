"""A broker in front of one MCP server, as transparent as it can be made: everything taken, under the server's own
names, no policy, and an open listener, because the suite sends no credential.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from examples.demo.house import environment_of, serve
from examples.demo.port import free_port
from tests.conformance.tasks import OWN_TASKS

AGENT = "conformance"
SETTINGS = """\
listen: {{port: {port}}}
testing: {{open: true}}
stdio: {{agent: {agent}}}
watch: false
"""
MANIFESTS = """\
kind: backend
name: behind
mcp:
  url: URL
  allow_private: true
  timeout: 90s
---
kind: import
name: everything
backend: behind
take: ["*"]
resources: {take: ["*"]}
prompts: {take: ["*"]}
effect: read
owner: tests
"""


@contextmanager
def broker_before(
    url: str, directory: Path, *, own_tasks: bool = False, credential: Mapping[str, Any] | None = None
) -> Generator[str]:
    """A broker in a process of its own before the server at this URL; gives its own. Raises HouseError.

    own_tasks: it makes tasks of the slow tools itself, where it otherwise passes on those of the server.
    credential: how it identifies itself there, as in a manifest.
    """
    manifests = directory / "tool_manifests"
    manifests.mkdir(parents=True)
    documents = MANIFESTS.replace("URL", json.dumps(url)) + (f"tools:\n{OWN_TASKS}\n" if own_tasks else "")
    if credential is not None:
        documents = documents.replace("  timeout:", f"  credential: {json.dumps(credential)}\n  timeout:", 1)
    (manifests / "everything.yaml").write_text(documents, "utf-8")
    port = free_port()
    (directory / "broker.yaml").write_text(SETTINGS.format(port=port, agent=AGENT), "utf-8")
    environment = environment_of({"BROKER_CONFIG": str(directory / "broker.yaml")})
    with serve(directory, environment, f"http://127.0.0.1:{port}"):
        yield f"http://127.0.0.1:{port}/mcp"
