"""How the outside comes in: agents through `mcp`, people through `cli`.

A face turns its own dialect into a `Call`, awaits `Pipeline.perform`, and turns the answer or the refusal back. It can
import no backend, store or authenticator, so there is no other way to a tool than the pipeline.
"""

from __future__ import annotations

from collections.abc import Mapping

# Where agents knock. Values are "module:Name", as in every table that grows.
FACES: Mapping[str, str] = {"mcp": "broker.faces.mcp.agents:AgentServer"}
