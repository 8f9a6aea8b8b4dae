"""Agents' programs (Claude Code, IDEs): where each keeps its MCP servers, and how an entry looks there.

One row per program. Nothing here touches a file; `config_file` does.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from broker.data import dataclass

Entry = dict[str, Any]

NAME = "broker"  # the name of our entry everywhere


def _application_support() -> Path:
    """Where desktop programs keep their settings on this system."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support"
    if sys.platform == "win32":
        return Path(os.environ.get("APPDATA", Path.home() / "AppData" / "Roaming"))
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")


@dataclass(frozen=True, slots=True)
class Program:
    """file: its configuration file, of the project (in the working directory) where it has one, otherwise of the user.
    section: the key that holds the servers. http: None when it reads only commands from that file. also: a command
    of its own that does the same, with {url} in it. then: what the person does afterwards."""

    title: str
    file: Callable[[], Path]
    section: str
    stdio: Callable[[list[str]], Entry]
    http: Callable[[str], Entry] | None
    also: str = ""
    then: str = ""
    toml: bool = False  # printed only: we do not rewrite TOML


def _command(argv: list[str]) -> Entry:
    return {"command": argv[0], "args": argv[1:]}


def _typed_command(argv: list[str]) -> Entry:
    return {"type": "stdio", **_command(argv)}


PROGRAMS: Mapping[str, Program] = {
    "claude-code": Program(
        title="Claude Code",
        file=lambda: Path.cwd() / ".mcp.json",
        section="mcpServers",
        stdio=_typed_command,
        http=lambda url: {"type": "http", "url": url},
        also="claude mcp add --transport http broker {url}",
        then="In Claude Code: /mcp, then sign in to broker.",
    ),
    "claude-desktop": Program(
        title="Claude Desktop",
        file=lambda: _application_support() / "Claude" / "claude_desktop_config.json",
        section="mcpServers",
        stdio=_command,
        http=None,
        then="Quit Claude Desktop and start it again.",
    ),
    "vscode": Program(
        title="VS Code",
        file=lambda: Path.cwd() / ".vscode" / "mcp.json",
        section="servers",
        stdio=_typed_command,
        http=lambda url: {"type": "http", "url": url},
        then="In VS Code: MCP: List Servers, broker, Start.",
    ),
    "cursor": Program(
        title="Cursor",
        file=lambda: Path.home() / ".cursor" / "mcp.json",
        section="mcpServers",
        stdio=_command,
        http=lambda url: {"url": url},
        then="In Cursor: Settings, MCP, broker.",
    ),
    "windsurf": Program(
        title="Windsurf",
        file=lambda: Path.home() / ".codeium" / "windsurf" / "mcp_config.json",
        section="mcpServers",
        stdio=_command,
        http=lambda url: {"serverUrl": url},
        then="In Windsurf: refresh the MCP servers.",
    ),
    "gemini": Program(
        title="Gemini CLI",
        file=lambda: Path.home() / ".gemini" / "settings.json",
        section="mcpServers",
        stdio=_command,
        http=lambda url: {"httpUrl": url},
        then="In Gemini CLI: /mcp.",
    ),
    "codex": Program(
        title="Codex",
        file=lambda: Path.home() / ".codex" / "config.toml",
        section="mcp_servers",
        stdio=_command,
        http=lambda url: {"url": url},
        then="Start Codex again.",
        toml=True,
    ),
}


def broker_command(settings: Path | None) -> list[str]:
    """The command line by which a program can start this broker over stdio, with absolute paths."""
    script = Path(sys.executable).parent / ("broker.exe" if sys.platform == "win32" else "broker")
    start = [str(script)] if script.exists() else [sys.executable, "-m", "broker"]
    return (
        [*start, "--config", str(settings.resolve()), "serve", "--stdio"] if settings else [*start, "serve", "--stdio"]
    )
