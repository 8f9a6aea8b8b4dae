"""`broker connect`, as a person uses it: print, write, take back, take over, on files of a home of the test's own."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from tests.command import Said, broker

HTTP_PROGRAMS = ("claude-code", "vscode", "cursor", "windsurf", "gemini")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    said = broker("init", cwd=tmp_path)
    assert said.code == 0, said.err
    return tmp_path


def ok(said: Said) -> Said:
    assert said.code == 0, said.err + said.out
    return said


def document(path: Path) -> Any:
    return json.loads(path.read_text())


def test_init_explains_every_key_and_overwrites_nothing(home: Path) -> None:
    text = (home / "broker.yaml").read_text()
    assert "port: 8750" in text
    (home / "broker.yaml").write_text("listen: {port: 9000}\n")
    said = broker("init", cwd=home)
    assert said.code == 2
    assert "broker.yaml: is there already" in said.err
    assert (home / "broker.yaml").read_text() == "listen: {port: 9000}\n"


@pytest.mark.parametrize("program", HTTP_PROGRAMS)
def test_connecting_a_program_puts_one_entry_into_its_file_and_takes_it_back(home: Path, program: str) -> None:
    shown = ok(broker("connect", program, "--json", cwd=home)).json
    path = Path(shown["file"])
    assert path.is_relative_to(home)
    path.parent.mkdir(parents=True, exist_ok=True)
    before = json.dumps({"theme": "dark", shown["section"]: {"other": {"command": "x"}}})
    path.write_text(before)
    ok(broker("connect", program, "--write", cwd=home))
    assert document(path) == {"theme": "dark", shown["section"]: {"other": {"command": "x"}, "broker": shown["entry"]}}
    assert "http://127.0.0.1:8750/mcp" in path.read_text()
    ok(broker("connect", program, "--undo", cwd=home))
    assert path.read_text() == before


def test_claude_desktop_starts_the_broker_itself_with_absolute_paths(home: Path) -> None:
    said = ok(broker("connect", "claude-desktop", "--json", cwd=home)).json
    entry = said["entry"]
    assert Path(entry["command"]).is_absolute()
    assert entry["args"][-2:] == ["serve", "--stdio"]
    assert str(home / "broker.yaml") in entry["args"]
    refused = broker("connect", "claude-desktop", "--http", cwd=home)
    assert refused.code == 2
    assert "--stdio" in refused.err


def test_printing_writes_nothing(home: Path) -> None:
    said = ok(broker("connect", "claude-code", "--print", cwd=home))
    assert "claude mcp add --transport http broker http://127.0.0.1:8750/mcp" in said.out
    assert not (home / ".mcp.json").exists()
    assert "[mcp_servers.broker]" in ok(broker("connect", "codex", cwd=home)).out
    assert broker("connect", "codex", "--write", cwd=home).code == 2


def test_a_program_that_was_not_connected_has_nothing_to_take_back(home: Path) -> None:
    said = broker("connect", "cursor", "--undo", cwd=home)
    assert said.code == 1
    assert "Nothing to take back" in said.out


def test_without_settings_a_program_cannot_be_told_how_to_start_the_broker(tmp_path: Path) -> None:
    said = broker("connect", "cursor", "--stdio", cwd=tmp_path)
    assert said.code == 2
    assert "broker init" in said.err


def test_an_address_that_changes_is_not_written(home: Path) -> None:
    (home / "broker.yaml").write_text("listen: {port: 0}\n")
    said = broker("connect", "cursor", cwd=home)
    assert said.code == 2
    assert "listen.port" in said.err


SERVERS = {
    "mcpServers": {
        "time": {"command": "mcp-server-time", "args": ["--local-timezone", "UTC"], "autoApprove": ["*"]},
        "notes": {"command": "notes-mcp", "env": {"NOTES_TOKEN": "canary-5f1e", "PAGER": "cat"}},
        "remote": {"url": "https://mcp.example.com/mcp", "headers": {"Authorization": "Bearer canary-77aa"}},
        "asks": {"command": "x", "env": {"KEY": "${input:key}"}},
    },
    "theme": "dark",
}


def test_taking_over_shows_first_then_moves_servers_behind_the_broker_and_back(home: Path) -> None:
    path = home / ".mcp.json"
    path.write_text(json.dumps(SERVERS, indent=4))
    before = path.read_bytes()

    shown = ok(broker("connect", "--take-over", ".mcp.json", cwd=home))
    assert "Nothing was written" in shown.out
    assert path.read_bytes() == before
    assert not (home / "secrets").exists()

    said = ok(broker("connect", "--take-over", ".mcp.json", "--write", cwd=home))
    assert "Left asks where it is" in said.out
    assert "autoApprove" in said.out
    assert "canary" not in said.out + said.err
    now = document(path)
    assert now["theme"] == "dark"
    assert now["mcpServers"].keys() == {"asks", "broker"}
    assert now["mcpServers"]["broker"]["args"][-2:] == ["serve", "--stdio"]
    for name in ("time", "notes-2", "remote"):  # there is a backend "notes" in what init wrote
        assert "canary" not in (home / "tool_manifests" / f"{name}.yaml").read_text()
    secret = home / "secrets" / "notes-2.NOTES_TOKEN"
    assert secret.read_text() == "canary-5f1e"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert stat.S_IMODE(secret.parent.stat().st_mode) == 0o700
    assert ok(broker("check", "--json", cwd=home)).json["backends"] == 4

    again = broker("connect", "--take-over", ".mcp.json", "--write", cwd=home)
    assert again.code == 1
    assert "Nothing to take over" in again.out

    ok(broker("connect", "--take-over", ".mcp.json", "--undo", cwd=home))
    assert path.read_bytes() == before
    ok(broker("connect", "--take-over", ".mcp.json", "--write", cwd=home))


def test_taking_over_leaves_everything_as_it_was_when_a_manifest_is_in_the_way(home: Path) -> None:
    path = home / "mcp.json"
    path.write_text('{"servers": {"time": {"command": "mcp-server-time"}}}')
    mine = home / "tool_manifests" / "time.yaml"
    mine.write_text("kind: backend\nname: time\nstatic: {}\n")
    said = broker("connect", "--take-over", "mcp.json", "--write", cwd=home)
    assert said.code == 2
    assert "time.yaml: is there already" in said.err
    assert mine.read_text().endswith("static: {}\n")
    assert document(path) == {"servers": {"time": {"command": "mcp-server-time"}}}
    assert sorted(one.name for one in home.iterdir()) == ["broker.yaml", "mcp.json", "tool_manifests"]
