"""Laws of the command line: safe text, typed arguments, files changed and given back, every command explained."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import orjson
import pytest
import structlog
from hypothesis import example, given, settings
from hypothesis import strategies as st

from broker.errors import SettingsError
from broker.faces.cli import COMMANDS, start
from broker.faces.cli.app import built_command, carried_out, summary
from broker.faces.cli.arguments import read_arguments, typed
from broker.faces.cli.config_file import ConfigFile
from broker.faces.cli.logs import to_stderr
from broker.faces.cli.takeover import convert
from broker.faces.text import is_unsafe, rendered, safe, safe_json
from tests.command import broker

ALL = [name for part in COMMANDS.values() for name in part]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)

# ---------------------------------------------------------------------------------------------------------------- text


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("\x1b[2J", "\\u{1b}[2J"),
        ("a\u202eb", "a\\u{202e}b"),
        ("pay\u200bpal", "pay\\u{200b}pal"),
        ("\x9b31m", "\\u{9b}31m"),
        ("\u2066x\u2069", "\\u{2066}x\\u{2069}"),
        ("a\nb", "a\\u{a}b"),
        ("\u3164", "\\u{3164}"),
        ("x\U000e0041", "x\\u{e0041}"),
        ("\ud800", "\\u{d800}"),
        ("no\u00a0break", "no\\u{a0}break"),
    ],
)
def test_what_shows_nothing_is_written_out(hostile: str, shown: str) -> None:
    assert safe(hostile) == shown


def test_letters_of_every_script_stay_as_they_are() -> None:
    assert safe("Grüße, Ελλάδα, 日本語, 😀 – “ok”") == "Grüße, Ελλάδα, 日本語, 😀 – “ok”"


@given(st.text())
def test_safe_text_has_no_control_and_no_format_character(text: str) -> None:
    assert not any(is_unsafe(character) for character in safe(text))
    assert all(unicodedata.category(one) not in ("Cc", "Cf") or one == "\n" for one in safe(text, lines=True))


@given(JSON)
def test_a_safe_json_document_means_the_same(value: Any) -> None:
    document = safe_json(json.dumps(value, ensure_ascii=False, indent=1))
    assert json.loads(document) == value
    assert not any(is_unsafe(character) for character in document if character != "\n")


@given(JSON)
def test_rendered_arguments_are_the_json_they_stand_for(value: Any) -> None:
    lines = rendered(value, cut=10**9)
    assert all(not is_unsafe(character) for line in lines for character in line)
    plain = json.dumps(value, ensure_ascii=False)
    if safe(plain) == plain:
        assert json.loads("\n".join(lines)) == value


def test_a_value_cannot_pretend_to_be_another_member() -> None:
    lines = rendered({"note": 'x"\n  "amount": 1', "amount": 9})
    assert lines == ["{", '  "note": "x\\"\\n  \\"amount\\": 1",', '  "amount": 9', "}"]


def test_a_long_value_is_cut_and_says_so() -> None:
    assert rendered("a" * 30, cut=10) == ['"aaaaaaaaaa" … and 20 more characters']


# ----------------------------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("text", "schema", "value"),
    [
        ("5", {"type": "string"}, "5"),
        ("true", {"type": "string"}, "true"),
        ("5", {"type": "integer"}, 5),
        ("5.5", {"type": "number"}, 5.5),
        ("five", {"type": "integer"}, "five"),
        ("NaN", {"type": "number"}, "NaN"),
        ("true", {"type": "boolean"}, True),
        ('["a"]', {"type": "array"}, ["a"]),
        ('{"a": 1}', {"type": "object"}, {"a": 1}),
        ("null", {"type": ["string", "null"]}, None),
        ("5", {"type": ["string", "null"]}, "5"),
        ("5", {"anyOf": [{"type": "string"}, {"type": "null"}]}, "5"),
        ("5", {"enum": ["5", "6"]}, "5"),
        ("5", {"enum": [5, 6]}, 5),
        ("A-1", {}, "A-1"),
        ("5", {}, 5),
    ],
)
def test_a_value_gets_the_type_its_schema_asks_for(text: str, schema: dict[str, Any], value: Any) -> None:
    got = typed(text, schema)
    assert got == value
    assert type(got) is type(value)


def test_pairs_go_over_the_document_and_colons_mean_json() -> None:
    schema = {"properties": {"id": {"$ref": "#/$defs/id"}}, "$defs": {"id": {"type": "string"}}}
    got = read_arguments(["id=7", "lines:=[1]", "note=a=b"], '{"id": "x", "keep": 1}', schema)
    assert got == {"id": "7", "keep": 1, "lines": [1], "note": "a=b"}


# -------------------------------------------------------------------------------------------------------------- files

OURS = {"broker": {"type": "http", "url": "http://127.0.0.1:8750/mcp"}}
SERVERS = st.dictionaries(
    st.text(min_size=1, max_size=5).filter(lambda name: name != "broker"),
    st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=2),
    max_size=3,
)


@given(
    others=st.dictionaries(st.text(max_size=4).filter(lambda key: key != "mcpServers"), JSON, max_size=3),
    servers=SERVERS,
)
def test_a_changed_file_keeps_what_we_do_not_know_and_is_given_back_byte_for_byte(
    tmp_path_factory: pytest.TempPathFactory, others: dict[str, Any], servers: dict[str, Any]
) -> None:
    path = tmp_path_factory.mktemp("file") / "mcp.json"
    before = json.dumps({**others, "mcpServers": servers}, indent=3, ensure_ascii=True).encode()
    path.write_bytes(before)
    file = ConfigFile(path, "mcpServers")
    file.change(OURS)
    assert json.loads(path.read_bytes()) == {**others, "mcpServers": {**servers, **OURS}}
    undone = file.undo()
    assert undone is not None
    assert undone.exact
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_was_not_there_is_gone_again(tmp_path: Path) -> None:
    file = ConfigFile(tmp_path / "deep" / "mcp.json", "servers")
    file.change(OURS)
    assert file.servers() == OURS
    assert file.undo()
    assert list((tmp_path / "deep").iterdir()) == []
    assert file.undo() is None


def test_undo_keeps_what_others_changed_since(tmp_path: Path) -> None:
    path = tmp_path / "mcp.json"
    path.write_text('{"mcpServers": {"git": {"command": "git-mcp"}, "broker": {"command": "mine"}}, "theme": "dark"}')
    file = ConfigFile(path, "mcpServers")
    file.change({"broker": {"command": "ours"}}, drop=frozenset({"git"}))
    assert file.servers() == {"broker": {"command": "ours"}}
    document = file.read()
    document["theme"] = "light"
    document["mcpServers"]["time"] = {"command": "time-mcp"}
    path.write_text(json.dumps(document))
    undone = file.undo()
    assert undone is not None
    assert not undone.exact
    assert file.read() == {
        "theme": "light",
        "mcpServers": {"git": {"command": "git-mcp"}, "broker": {"command": "mine"}, "time": {"command": "time-mcp"}},
    }


def test_a_second_change_still_leads_back_to_before_the_first(tmp_path: Path) -> None:
    path = tmp_path / "mcp.json"
    path.write_bytes(b'{\r\n\t"a": 1.50\r\n}')
    file = ConfigFile(path, "mcpServers")
    file.change(OURS)
    assert b"\r\n\t" in path.read_bytes()
    file.change({"broker": {"command": "other"}})
    assert file.undo()
    assert path.read_bytes() == b'{\r\n\t"a": 1.50\r\n}'


@pytest.mark.parametrize(
    "text", ['{"a": 1, // note\n "b": 2}', '{"a": 1, "a": 2}', "[1]", '{"mcpServers": []}', "\x00", "nothing"]
)
def test_a_file_that_would_lose_something_is_not_touched(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mcp.json"
    path.write_text(text)
    with pytest.raises(SettingsError, match="nothing was changed"):
        ConfigFile(path, "mcpServers").change(OURS)
    assert path.read_text() == text
    assert list(tmp_path.iterdir()) == [path]


def test_a_copy_is_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "mcp.json"
    path.write_text('{"mcpServers": {"x": {"env": {"TOKEN": "t"}}}}')
    path.chmod(0o644)
    copy = ConfigFile(path, "mcpServers").change(OURS)
    assert copy.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_mode & 0o777 == 0o644


# ----------------------------------------------------------------------------------------------------------- take over


def test_secrets_of_a_server_are_moved_out_of_the_manifest() -> None:
    [taken], left = convert(
        {
            "git hub": {
                "command": "gh-mcp",
                "args": ["--quiet"],
                "env": {"GITHUB_TOKEN": "ghp_abc", "GIT_PAGER": "cat", "X": "${HOME}"},
            }
        },
        source="mcp.json",
    )
    assert left == []
    assert taken.backend == "git-hub"
    assert "ghp_abc" not in taken.text
    assert taken.secrets == {"git-hub.GITHUB_TOKEN": "ghp_abc"}
    assert "${file:secrets/git-hub.GITHUB_TOKEN}" in taken.text
    assert '"GIT_PAGER": "cat"' in taken.text
    assert "${env:HOME}" in taken.text


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ({"command": "x", "disabled": True}, "disabled"),
        ({"command": "x", "args": ["--api-key=sk-123456"]}, "secret"),
        ({"command": "x", "env": {"KEY": "${input:key}"}}, "filled in by the program"),
        ({"url": "https://user:pass@host/mcp"}, "secret"),
        ({"url": "https://host/mcp", "headers": {"A": "1", "B": "2"}}, "several headers"),
        ({"command": "broker", "args": ["serve", "--stdio"]}, "already"),
        ({"args": []}, "neither"),
        ("x", "not an object"),
    ],
)
def test_a_server_that_cannot_be_carried_over_whole_is_left(entry: Any, why: str) -> None:
    taken, [left] = convert({"one": entry}, source="mcp.json")
    assert taken == []
    assert why in left.why


def test_two_servers_with_names_we_spell_the_same_become_two_backends() -> None:
    taken, _ = convert({"a b": {"command": "x"}, "a.b": {"command": "y"}}, source="mcp.json")
    assert [one.backend for one in taken] == ["a-b", "a-b-2"]


# ---------------------------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("command", ALL)
def test_every_command_has_help_with_an_example(command: str) -> None:
    reference = next(part[command] for part in COMMANDS.values() if command in part)
    built = built_command(command, reference)
    for one in [built, *getattr(built, "commands", {}).values()]:
        assert "Example:" in one.help, one.name
        assert one.get_short_help_str(200)
    assert summary(reference) == built.get_short_help_str(110)


def test_help_imports_neither_the_sdk_nor_the_house() -> None:
    code = (
        "import sys\nfrom broker.faces.cli.run import run\n"
        "assert run(['--help']) == 0\n"
        "heavy = {'mcp', 'pydantic', 'starlette', 'rich', 'broker.assembly', 'broker.settings'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert all(f"\n  {command} " in done.stdout for command in ALL)


VALUES = [
    "0",
    "8750",
    "59999",
    "65535",
    "65536",
    "070",
    "-1",
    "-",
    "--",
    "x.yaml",
    "",
    "٣",
    "1_0",
    " 1",
    "--port",
    "a b",
    "1\n",
]
VALUE = st.sampled_from(VALUES) | st.text(max_size=3)
PIECES = (
    st.just(["--stdio"])
    | st.tuples(st.sampled_from(["--port", "--config", "--con", "--help"]), VALUE).map(list)
    | VALUE.map(lambda value: [value])
)


@settings(deadline=None)
@given(st.lists(PIECES, max_size=3), st.sampled_from([None, "", "set.yaml"]))
@example([["--port", "0"]], "set.yaml")
@example([["--config", "a"], ["--stdio"]], None)
@example([["--port", "8750"], ["--config", "a"]], None)
def test_what_is_plainly_serve_is_read_as_the_library_reads_it(pieces: list[list[str]], named: str | None) -> None:
    words = ["serve", *(word for piece in pieces for word in piece)]
    asked: list[dict[str, Any]] = []

    def started(**given: Any) -> None:
        asked.append(given)

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("BROKER_CONFIG", raising=False)
        if named is not None:
            patch.setenv("BROKER_CONFIG", named)
        plainly = start.plainly(words)
        if plainly is None:
            return
        patch.setattr(start, "start", started)
        assert carried_out(words) == 0
    assert asked == [plainly]


@pytest.mark.parametrize(
    "words", [["--help"], ["--port"], ["--port", "65536"], ["--stdio", "--port", "1"], ["x"], ["--", "x"]]
)
def test_what_is_not_plainly_serve_is_the_librarys_to_answer(words: list[str]) -> None:
    assert start.plainly(["serve", *words]) is None
    assert start.plainly([words[0], "serve"]) is None
    assert start.plainly([]) is None


def test_an_unknown_command_is_a_usage_error_with_a_suggestion(tmp_path: Path) -> None:
    said = broker("conect", cwd=tmp_path)
    assert said.code == 2
    assert "'connect'" in said.err
    assert said.out == ""


@pytest.mark.parametrize(
    "words",
    [
        ("deny", "x"),
        ("log", "--state", "done"),
        ("log", "--since", "soon"),
        ("call",),
        ("connect", "emacs"),
        ("log", "--by", "moon"),
        ("log", "1c2b3a49", "--by", "tool"),
        ("log", "1c2b3a49", "--follow"),
        ("log", "1c2b3a49", "--agent", "bot"),
        ("log", "--follow", "--by", "tool"),
        ("log", "--follow", "--until", "1h"),
        ("log", "--limit", "0"),
        ("connect", "--stdio", "--http"),
    ],
)
def test_a_wrong_command_line_ends_with_2_and_one_error(words: tuple[str, ...], tmp_path: Path) -> None:
    said = broker(*words, cwd=tmp_path)
    assert said.code == 2
    assert said.err.startswith("Error: ")
    assert not any(odd in said.err for odd in ("Traceback", "Value error", "Input should"))


def test_settings_that_are_not_there_are_named_with_the_command_that_writes_them(tmp_path: Path) -> None:
    said = broker("log", "--config", "none.yaml", cwd=tmp_path)
    assert said.code == 2
    assert said.err.startswith("none.yaml: ")
    assert "broker init" in said.err
    assert orjson.dumps(said.out) == b'""'


def test_a_line_of_the_log_goes_to_the_stderr_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with io.StringIO() as first:
        monkeypatch.setattr(sys, "stderr", first)
        to_stderr("warning")
    second = io.StringIO()
    monkeypatch.setattr(sys, "stderr", second)
    structlog.get_logger("broker").warning("heard")
    assert "heard" in second.getvalue()
