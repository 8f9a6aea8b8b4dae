"""A newcomer's day on the command line: first tool, an agent, a refusal, a held call decided, the records proved."""

from __future__ import annotations

import json
import signal
import stat
import time
from pathlib import Path
from typing import IO, Any

import httpx2
import pytest

from broker.faces.cli.review import system_user
from examples.demo.port import free_port
from tests.command import Said, broker, running

MANIFESTS = """
kind: backend
name: notes
static: {}
---
kind: tool
name: note_read
title: Read the notes
description: Reads what is noted.
effect: read
backend: notes
static: {text: "be kind\\u001b[31m and \\u202eterse"}
---
kind: tool
name: note_write
title: Write a note
description: Writes a note.
effect: write
scopes: [notes.write]
backend: notes
record: redacted
input:
  type: object
  properties: {text: {type: string}, copies: {type: integer, minimum: 1}}
  required: [text]
  additionalProperties: false
static: {text: written}
---
kind: policy
name: care
tools: [note_write]
rules:
  - {id: many, when: "has(args.copies) && args.copies > 3", effect: hold, reason: many copies need a person}
  - {id: none, when: "args.text == ''", effect: deny, reason: an empty note helps nobody}
---
kind: quota
name: writes
tools: [note_write]
count: {limit: 5, per: day, timezone: UTC}
by: [agent]
"""
SETTINGS = "listen: {port: 0}\nwatch: false\nhold: {wait_s: 0}\nstdio: {agent: desk, scopes: [notes.write]}\n"
DEADLINE_S = 30


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "broker.yaml").write_text(SETTINGS)
    (tmp_path / "tool_manifests").mkdir()
    (tmp_path / "tool_manifests" / "notes.yaml").write_text(MANIFESTS)
    return tmp_path


def ok(said: Said) -> Said:
    assert said.code == 0, said.err + said.out
    return said


def lines_until(stream: IO[str] | None, word: str) -> list[str]:
    """What a starting broker says, up to the line with this word. A dead broker ends the stream."""
    assert stream is not None
    lines: list[str] = []
    for line in stream:
        lines.append(line)
        if word in line:
            return lines
    raise AssertionError(f"{word!r} never came: {''.join(lines)}")


def url_of(lines: list[str]) -> str:
    return next(line.split()[1] for line in lines if "/mcp" in line).removesuffix("/mcp")


def test_a_call_from_the_shell_is_typed_run_recorded_and_found_again(home: Path) -> None:
    said = ok(broker("call", "note_write", "text=5", "copies=2", cwd=home))
    assert said.out == "written\n"
    call_id = said.err.strip().rpartition("call ")[2].rstrip(")")
    found = ok(broker("log", "--tool", "note_write", "--since", "1h", "--json", cwd=home)).json
    assert [(one["call_id"], one["state"], one["agent"], one["face"]) for one in found] == [
        (call_id, "succeeded", "desk", "cli")
    ]
    detail = ok(broker("log", call_id[-8:], cwd=home)).out
    assert "What happened:" in detail
    assert '"copies": 2' in detail
    assert "writes [agent=desk]: 4 of 5 calls left" in detail
    assert stat.S_IMODE((home / "broker.db").stat().st_mode) == 0o600


def test_what_is_left_of_a_quota_is_shown_for_people_and_programs(home: Path) -> None:
    assert ok(broker("quotas", cwd=home)).out == "Nothing of any quota is used now.\n"
    ok(broker("call", "note_write", "text=5", "copies=2", cwd=home))
    (one,) = ok(broker("quotas", "writes", "--json", cwd=home)).json
    assert one.pop("resets_at_ms") > 0
    assert one == {"quota": "writes", "bucket": "agent=desk", "kind": "count", "limit": 5, "left": 4, "unit": "calls"}
    (line,) = ok(broker("quotas", cwd=home)).out.splitlines()[1:]
    assert line.split()[:6] == ["writes", "agent=desk", "count", "4", "5", "calls"]
    assert ok(broker("quotas", "other", cwd=home)).out == "Nothing of this quota is used now.\n"


def test_what_a_tool_answers_cannot_reach_the_terminal(home: Path) -> None:
    said = ok(broker("call", "note_read", cwd=home))
    assert said.out == "be kind\\u{1b}[31m and \\u{202e}terse\n"
    document = ok(broker("call", "note_read", "--json", cwd=home))
    assert "\u202e" not in document.out
    assert document.json["result"]["content"][0]["text"] == "be kind\x1b[31m and \u202eterse"


def test_a_refusal_is_one_sentence_and_exit_code_1(home: Path) -> None:
    said = broker("call", "note_write", "text=", cwd=home)
    assert said.code == 1
    assert "care/none" in said.err
    assert "Nothing was done" in said.err
    assert said.out == ""
    unknown = broker("call", "note_wrote", "--json", cwd=home)
    assert unknown.code == 1
    assert unknown.json["result"]["structuredContent"]["code"] == "unknown_tool"


def test_explain_names_every_rule_and_sends_nothing(home: Path) -> None:
    ok(broker("client", "add", "reader", cwd=home))
    said = broker("explain", "reader", "note_write", "text=a", cwd=home)
    assert said.code == 1
    assert "notes.write" in said.out
    held = broker("explain", "local", "note_write", "text=a", "copies=9", "--json", cwd=home)
    assert held.code == 1
    assert held.json["outcome"] == "hold"
    rules = {one["rule"]: one["met"] for step in held.json["steps"] for one in step.get("findings", ())}
    assert rules["care/many"] is True
    assert rules["care/none"] is False
    assert (
        ok(broker("explain", "local", "note_write", "text=a", cwd=home))
        .out.rstrip()
        .splitlines()[-1]
        .startswith("dispatch")
    )
    assert ok(broker("log", "--json", cwd=home)).json == []


def test_what_an_agent_sees_is_its_own_list(home: Path) -> None:
    ok(broker("client", "add", "reader", cwd=home))
    everything = ok(broker("tools", "--json", cwd=home)).json
    assert [one["name"] for one in everything] == ["note_read", "note_write"]
    seen = {one["name"] for one in ok(broker("tools", "--as", "reader", "--json", cwd=home)).json}
    assert "note_read" in seen
    assert "note_write" not in seen
    nobody = broker("tools", "--as", "nobody", cwd=home)
    assert nobody.code == 1
    assert "reader" in nobody.err


def test_a_held_call_is_shown_as_it_will_be_sent_decided_and_run_by_a_serving_broker(home: Path) -> None:
    asked = broker("call", "note_write", "text=pay\u200bpal \u202e", "copies=9", cwd=home)
    assert asked.code == 1
    assert "Held" in asked.err
    shown = ok(broker("holds", cwd=home)).out
    assert '"text": "pay\\u{200b}pal \\u{202e}"' in shown
    assert "many copies need a person" in shown
    [held] = ok(broker("holds", "--json", cwd=home)).json
    assert held["arguments"] == {"text": "pay\u200bpal \u202e", "copies": 9}
    call_id = held["call_id"]

    waiting = broker("approve", call_id, "--wait", "0", cwd=home)
    assert waiting.code == 1
    assert "not done yet" in waiting.out
    with running("serve", cwd=home) as served:
        said = lines_until(served.stderr, "/mcp")
        assert httpx2.get(url_of(said) + "/readyz", timeout=10).status_code == 200
        deadline = time.monotonic() + DEADLINE_S
        while (state := ok(broker("log", call_id, "--json", cwd=home)).json["state"]) != "succeeded":
            assert time.monotonic() < deadline, state
        again = broker("approve", call_id, cwd=home)
        assert again.code == 1
        assert "Traceback" not in again.err

        assert broker("call", "note_write", "text=b", "copies=8", "--no-wait", cwd=home).code == 1
        [second] = ok(broker("holds", "--json", cwd=home)).json
        assert "ran in" in ok(broker("approve", second["call_id"][-10:], "--wait", "20", cwd=home)).out
        assert broker("call", "note_write", "text=c", "copies=7", "--no-wait", cwd=home).code == 1
        [third] = ok(broker("holds", "--json", cwd=home)).json
        assert "Denied" in ok(broker("deny", third["call_id"], "--reason", "too many", cwd=home)).out
    told = broker("call", "broker_held_call", f"id={third['call_id']}", cwd=home)
    assert told.code == 1
    assert "too many" in told.err


def test_an_account_reviews_with_its_password_and_only_with_it(home: Path) -> None:
    secret = ok(broker("user", "add", "rita", "--scope", "broker.review", "--json", cwd=home)).json["password"]
    assert broker("call", "note_write", "text=a", "copies=9", cwd=home).code == 1
    [held] = ok(broker("holds", "--json", cwd=home)).json
    words = ("deny", held["call_id"], "--reason", "no", "--reviewer", "rita", "--password-stdin", "--json")
    wrong = broker(*words, cwd=home, stdin="guess-guess\n")
    assert wrong.code == 1
    assert "no account with this password" in wrong.err
    decided = ok(broker(*words, cwd=home, stdin=secret + "\n")).json
    assert decided["state"] == "rejected"
    assert decided["hold"]["reviewer"].startswith("rita@")
    assert secret not in json.dumps(decided)


def test_whoever_asked_may_not_decide_from_the_shell_either(home: Path) -> None:
    stdio = f"stdio: {{agent: desk, user: {json.dumps(system_user().upper())}, scopes: [notes.write]}}\n"
    (home / "broker.yaml").write_text(SETTINGS.replace("stdio: {agent: desk, scopes: [notes.write]}\n", stdio))
    assert broker("call", "note_write", "text=a", "copies=9", cwd=home).code == 1
    [held] = ok(broker("holds", "--json", cwd=home)).json
    for words in (("approve", held["call_id"]), ("deny", held["call_id"], "--reason", "x")):
        said = broker(*words, cwd=home)
        assert said.code == 1
        assert "requester" in said.err
    assert len(ok(broker("holds", "--json", cwd=home)).json) == 1


def test_settings_can_be_named_before_the_command_after_it_or_by_a_variable(home: Path) -> None:
    elsewhere = home / "elsewhere"
    elsewhere.mkdir()
    ok(broker("call", "note_read", cwd=home))
    path = str(home / "broker.yaml")
    for words, env in (
        (("--config", path, "log", "--json"), {}),
        (("log", "--json", "--config", path), {}),
        (("log", "--json"), {"BROKER_CONFIG": path}),
    ):
        assert len(ok(broker(*words, cwd=elsewhere, env=env)).json) == 1
    assert ok(broker("log", "--json", cwd=elsewhere)).json == []


def test_records_are_verified_against_an_anchor_and_exported_as_lines(home: Path) -> None:
    for text in ("a", "b"):
        ok(broker("call", "note_write", f"text={text}", cwd=home))
    ok(broker("verify", "--write-anchor", "anchor", cwd=home))
    ok(broker("call", "note_write", "text=c", cwd=home))
    ok(broker("verify", "--anchor", "anchor", cwd=home))
    lines = ok(broker("export", cwd=home)).out.splitlines()
    assert [json.loads(line)["state"] for line in lines] == ["succeeded"] * 3


def test_a_file_that_is_not_there_or_cannot_be_written_is_one_sentence(home: Path) -> None:
    ok(broker("call", "note_write", "text=a", cwd=home))
    said = broker("export", "--output", "nowhere/calls.jsonl", cwd=home)
    assert (said.code, said.err) == (2, "nowhere/calls.jsonl: cannot be written: No such file or directory\n")
    said = broker("verify", "--anchor", "nowhere", cwd=home)
    assert (said.code, said.out) == (2, "")
    assert said.err == "nowhere: there is no such anchor; `--write-anchor FILE` writes one\n"


def test_what_is_no_anchor_is_not_taken_for_a_fault_of_the_records(home: Path) -> None:
    ok(broker("call", "note_write", "text=a", cwd=home))
    (home / "empty").write_text("")
    said = broker("verify", "--anchor", "empty", cwd=home)
    assert (said.code, said.out.splitlines()[0]) == (1, "Not proved: empty holds no anchor.")
    said = broker("verify", "--anchor", "broker.yaml", cwd=home)
    assert (said.code, "Not proved: broker.yaml:1 is not an anchor" in said.out) == (1, True)
    ok(broker("verify", "--write-anchor", "anchor", cwd=home))
    said = broker("verify", "--anchor", "anchor", "--key", "A" * 43 + "=", cwd=home)
    assert (said.code, "nothing that is signed with this key" in said.out) == (1, True)


@pytest.mark.parametrize("when", ["9" * 20 + "d", "9" * 5000 + "d", "99999999d"])
def test_a_time_before_all_times_is_a_time(home: Path, when: str) -> None:
    ok(broker("call", "note_write", "text=a", cwd=home))
    since, until = (broker("log", option, when, "--json", cwd=home) for option in ("--since", "--until"))
    if len(when) > 5000:
        assert (since.code, until.code) == (2, 2)
        assert "neither like 30m" in since.err
    else:
        assert (len(since.json), until.json) == (1, [])


def test_words_that_are_no_text_are_refused_in_a_sentence(home: Path) -> None:
    said = broker("call", "note_write", "text=\udcff", cwd=home)
    assert (said.code, said.err) == (2, "Error: word 3 of the command line is not UTF-8: text=\\udcff\n")


@pytest.mark.parametrize("scope", ["", "a b", 'a"b', "a\tb", "ä", "x" * 129])
def test_what_is_no_scope_is_given_to_nobody(home: Path, scope: str) -> None:
    """Two words would be one scope of the client and two of its token."""
    for command in (["client", "add", "bot"], ["user", "add", "ann"], ["token", "--api-key", "night"]):
        said = broker(*command, "--scope", scope, cwd=home)
        assert (said.code, "a scope has 1 to 128" in said.err) == (2, True)
    assert ok(broker("client", "list", "--json", cwd=home)).json == []


def test_credentials_made_by_hand_open_the_door_and_close_again(home: Path) -> None:
    ok(broker("client", "add", "bot", "--scope", "notes.write", cwd=home))
    key = ok(broker("token", "--api-key", "night", "--scope", "notes.write", "--expires", "1d", cwd=home)).out.strip()
    port = free_port()
    environment = {"BROKER_LISTEN__PORT": str(port)}
    token = ok(broker("token", "bot", cwd=home, env=environment)).out.strip()

    def ask(credential: str) -> int:
        body: dict[str, Any] = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
        headers = {"Authorization": f"Bearer {credential}", "Accept": "application/json, text/event-stream"}
        return httpx2.post(f"http://127.0.0.1:{port}/mcp", json=body, headers=headers, timeout=10).status_code

    with running("serve", cwd=home, env=environment) as served:
        lines_until(served.stderr, "/mcp")
        assert ask("nonsense") == 401
        assert ask(token) != 401
        assert ask(key) != 401
        key_id = ok(broker("token", "list", "--json", cwd=home)).json[0]["key_id"]
        ok(broker("token", "revoke", key_id, cwd=home))
        assert ok(broker("token", "list", "--json", cwd=home)).json[0]["revoked_at_ms"]
        taken = broker("serve", cwd=home, env=environment)
        assert taken.code == 2
        assert "another broker" in taken.err
        assert "--port" in taken.err
        assert "Traceback" not in taken.err
        served.send_signal(signal.SIGTERM)
        assert served.wait(DEADLINE_S) == 0


def test_an_open_listener_is_for_tests_and_says_so_at_every_start(home: Path) -> None:
    body: dict[str, Any] = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}

    def ask(url: str, **headers: str) -> int:
        accept = {"Accept": "application/json, text/event-stream", **headers}
        return httpx2.post(f"{url}/mcp", json=body, headers=accept, timeout=10).status_code

    for told, expected in (("false", 401), ("true", 400)):  # 400: a session is missing, and nothing else
        with running("serve", "--port", "0", cwd=home, env={"BROKER_TESTING__OPEN": told}) as served:
            said = lines_until(served.stderr, "/mcp")
            assert ask(url_of(said)) == expected
            assert ask(url_of(said), Authorization="Bearer nonsense") == 401
            assert ask(url_of(said), Origin="https://elsewhere.example") == 403
        assert any("testing.open is on" in line for line in said) is (told == "true")
    outside = {"BROKER_TESTING__OPEN": "true", "BROKER_LISTEN__HOST": "0.0.0.0"}
    refused = broker("serve", "--port", "0", cwd=home, env=outside)
    assert refused.code == 2
    assert "testing.open" in refused.err


def test_accounts_and_clients_are_listed_without_a_secret_and_removed(home: Path) -> None:
    ok(broker("user", "add", "ann", "--scope", "x", "--password-stdin", cwd=home, stdin="canary-pass-1\n"))
    ok(broker("client", "add", "bot", "--owner", "ann", cwd=home))
    for noun, name in (("user", "ann"), ("client", "bot")):
        listed = ok(broker(noun, "list", "--json", cwd=home))
        assert len(listed.json) == 1
        assert "canary" not in listed.out
        assert "hash" not in listed.out
        assert broker(noun, "add", name, cwd=home).code == 1
        ok(broker(noun, "remove", name, cwd=home))
        assert broker(noun, "remove", name, cwd=home).code == 1
        assert ok(broker(noun, "list", "--json", cwd=home)).json == []


def test_check_tells_every_problem_with_its_place_and_stops_at_none(home: Path) -> None:
    assert ok(broker("check", "--json", cwd=home)).json["tools"] == 2
    (home / "tool_manifests" / "bad.yaml").write_text("kind: backend\nname: x\nstatik: {}\n---\nkind: toool\nname: y\n")
    said = broker("check", cwd=home)
    assert said.code == 2
    assert "bad.yaml:3:1: " in said.err
    assert "static" in said.err
    assert "bad.yaml:5:" in said.err
    problems = broker("check", "--json", cwd=home).json["problems"]
    assert {problem["line"] for problem in problems} >= {3, 5}
    assert broker("serve", cwd=home).code == 2


def test_a_server_that_cannot_start_is_told_in_its_own_words(home: Path) -> None:
    script = "import sys; sys.exit('no licence file')"
    manifest: dict[str, Any] = {"kind": "backend", "name": "broken", "mcp": {"command": ["python3", "-c", script]}}
    (home / "tool_manifests" / "broken.json").write_text(json.dumps(manifest))
    said = broker("check", "--live", cwd=home)
    assert said.code == 1
    assert "broken" in said.out
    assert "no licence file" in said.out
    assert "no licence file" in broker("doctor", cwd=home).out
    with running("serve", cwd=home) as served:
        lines = lines_until(served.stderr, "/mcp")
    assert any("broken" in line and "no licence file" in line for line in lines)
    assert any("2 tools" in line for line in lines)


def test_a_check_of_working_servers_says_what_they_did_not_offer_and_of_others_that_it_is_not_well(home: Path) -> None:
    manifests = home / "tool_manifests"
    manifests.joinpath("clock.json").write_text(
        json.dumps({"kind": "backend", "name": "clock", "mcp": {"command": ["mcp-server-time"]}})
    )
    manifests.joinpath("take.yaml").write_text(
        "kind: import\nname: take\nbackend: clock\ntake: [get_current_tim]\neffect: read\n"
    )
    assert "check --live" in ok(broker("check", cwd=home)).out
    live = ok(broker("check", "--live", cwd=home)).out
    assert "did you mean 'get_current_time'" in live
    assert live.splitlines()[-1].startswith("ok: ")
    manifests.joinpath("clock.json").write_text(
        json.dumps({"kind": "backend", "name": "clock", "mcp": {"command": ["no-such-server"]}})
    )
    dead = broker("check", "--live", cwd=home)
    assert dead.code == 1
    assert dead.out.splitlines()[-1] == "not ok: 2 backends, 2 tools; 1 of 2 backends not up"


def test_a_secret_that_is_not_there_is_told_before_the_first_call_fails(home: Path) -> None:
    (home / "tool_manifests" / "shop.yaml").write_text(
        "kind: backend\nname: shop\nhttp:\n  base_url: https://shop.example\n"
        '  credential: {header: Authorization, value: "Bearer ${env:SHOP_TOKEN}"}\n'
    )
    told = "backend 'shop' has no secret: ${env:SHOP_TOKEN}: the environment variable SHOP_TOKEN is not set"
    assert told in ok(broker("check", cwd=home)).out
    assert told in broker("doctor", cwd=home).out
    there = ok(broker("check", "--json", cwd=home, env={"SHOP_TOKEN": "canary-7431"}))
    assert there.json["notes"] == []
    assert "canary-7431" not in there.out + there.err


def test_check_refuses_what_serve_refuses_whoever_has_an_account(home: Path) -> None:
    settings = (home / "broker.yaml").read_text()
    (home / "broker.yaml").write_text(settings.replace("port: 0", "port: 0, host: 0.0.0.0"))
    said = broker("check", cwd=home)
    assert said.code == 2
    assert "broker.yaml: listen.host is '0.0.0.0'" in said.err
    (home / "broker.yaml").write_text(settings + "public_url: https://broker.example\n")
    ok(broker("check", cwd=home))


def test_who_calls_from_the_shell_hears_what_a_person_can_do_about_it(home: Path) -> None:
    (home / "broker.yaml").write_text("watch: false\n")
    assert "`local` holds what `stdio` in the settings gives it" in broker("call", "note_write", "text=x", cwd=home).err
    assert "`broker explain local note_rea`" in broker("call", "note_rea", cwd=home).err


def test_doctor_finds_what_is_wrong_and_says_the_remedy(home: Path) -> None:
    well = ok(broker("doctor", "--json", cwd=home)).json
    assert {one["state"] for one in well} <= {"ok", "look"}
    (home / "broker.db").chmod(0o644)
    said = broker("doctor", cwd=home)
    assert said.code == 1
    assert f"chmod 0600 {home / 'broker.db'}" in said.out


def test_doctor_says_how_damaged_records_are_mended(home: Path) -> None:
    (home / "broker.db").write_bytes(b"no database at all")
    said = broker("doctor", cwd=home)
    assert said.code == 1
    assert "is damaged" in said.out
    assert "Restore a backup" in said.out


def test_arguments_as_one_json_object_have_an_option_of_their_own(home: Path) -> None:
    ok(broker("call", "note_write", "--args", '{"text": "a"}', cwd=home))
    said = broker("call", "note_write", '{"text": "a"}', cwd=home)
    assert said.code == 2
    assert "a JSON object goes to --args" in said.err


def test_following_the_log_prints_calls_as_they_come(home: Path) -> None:
    ok(broker("call", "note_write", "text=first", cwd=home))
    with running("log", "--follow", "--json", cwd=home) as following:
        assert following.stdout is not None
        first = json.loads(following.stdout.readline())
        ok(broker("call", "note_write", "text=second", cwd=home))
        second = json.loads(following.stdout.readline())
    assert (first["tool"], second["tool"]) == ("note_write", "note_write")
    assert first["call_id"] < second["call_id"]


def test_the_schema_for_editors_is_a_json_schema(home: Path) -> None:
    schema = ok(broker("schema", cwd=home)).json
    assert "json-schema.org" in schema["$schema"]
