"""What MCP servers have besides tools: resources, resource templates and prompts, as a call's way to them.

In the catalog, in policies and in records they stand beside the tools, under names no tool can have: `resource:URI`
(of a template: its text) and `prompt:NAME`.
"""

from __future__ import annotations

from typing import Literal

from broker.data import dataclass

Family = Literal["resources", "templates", "prompts"]

RESOURCE = "resource:"
PROMPT = "prompt:"


@dataclass(frozen=True, slots=True)
class Part:
    """natural: its URI, URI template or name at its server. prefix: what its catalog name has in front of that, ""
    unless two servers offer the same."""

    family: Family
    natural: str
    prefix: str = ""
