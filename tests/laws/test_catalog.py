"""The catalog: names, imports that cannot be trusted, who sees what, and one version for equal contents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.catalog.catalog import Catalog, Shelf
from broker.catalog.compiler import compile_catalog
from broker.catalog.imports import plain
from broker.errors import ManifestError
from broker.model.canonical import canonical
from broker.model.principal import Principal
from broker.policies.spec import is_name
from broker.ports import Offer
from broker.settings import HoldSettings
from tests.catalogs import KINDS, catalog_of, offered, read

BOT = Principal(agent="bot", scopes=frozenset({"git.read"}))
GIT = """
kind: backend
name: git
server: {}
---
kind: backend
name: hub
server: {timeout: 5}
---
kind: backend
name: notes
static: {}
---
kind: import
name: git-tools
backend: git
take: [status, "log*"]
drop: [log_secret]
effect: read
scopes: [git.read]
owner: platform
"""
HUB = "---\nkind: import\nname: hub-tools\nbackend: hub\ntake: ['*']\neffect: read\n"
NOTE = "---\nkind: tool\nname: note\neffect: read\nbackend: notes\nstatic: {text: hello}\n"


def names(catalog: Catalog, caller: Principal = BOT) -> list[str]:
    return [entry.tool.name for entry in catalog.listing(caller)]


# ---------------------------------------------------------------------------------------------------------------- names


def test_imported_tools_keep_the_names_their_server_gave_them(tmp_path: Path) -> None:
    found = catalog_of(tmp_path, GIT, git=[offered("status"), offered("log"), offered("log_secret"), offered("push")])
    assert list(found.entries) == ["log", "status"]
    assert found.notes == ()


def test_names_that_collide_or_look_alike_are_told_apart_by_their_backend_and_noted(tmp_path: Path) -> None:
    found = catalog_of(
        tmp_path, GIT + HUB, git=[offered("status"), offered("log")], hub=[offered("STATUS"), offered("x")]
    )
    assert list(found.entries) == ["git_status", "hub_STATUS", "log", "x"]
    assert [note.split(": ", 1)[1] for note in found.notes] == [
        "'status' of git is called 'git_status'",
        "'STATUS' of hub is called 'hub_STATUS'",
    ]


def test_a_name_in_the_manifests_wins_over_an_imported_one(tmp_path: Path) -> None:
    text = GIT + NOTE.replace("name: note", "name: status")
    found = catalog_of(tmp_path, text, git=[offered("status")])
    assert {name: entry.tool.backend for name, entry in found.entries.items()} == {
        "git_status": "git",
        "status": "notes",
    }


def test_names_stay_unique_and_short_whatever_servers_call_their_tools(tmp_path: Path) -> None:
    long = "x" * 70
    git = [
        offered("log.a"),
        offered("log/a"),
        offered("log_a"),
        offered(f"log{long}1"),
        offered(f"log{long}2"),
        offered("logé"),
    ]
    found = catalog_of(tmp_path, GIT + HUB, git=git, hub=[offered("git_log_a"), offered("broker_held_call")])
    assert len(found.entries) == 8
    assert all(is_name(name) and not name.startswith("broker_") for name in found.entries)
    assert len({name.casefold() for name in found.entries}) == 8
    assert "hub_broker_held_call" in found.entries
    assert "git_log_a" in found.entries
    again = catalog_of(tmp_path, GIT + HUB, git=git[::-1], hub=[offered("broker_held_call"), offered("git_log_a")])
    assert again.entries.keys() == found.entries.keys()
    assert again.version == found.version


@given(st.text(min_size=1, max_size=200))
def test_any_name_becomes_a_name_of_ours_and_the_same_each_time(natural: str) -> None:
    assert is_name(plain(natural))
    assert plain(natural) == plain(natural)
    assert plain(natural) == natural or not is_name(natural)


def test_a_rename_stands_and_must_be_free(tmp_path: Path) -> None:
    renamed = GIT + "tools: {status: {rename: repo_status, description: short}}\n"
    found = catalog_of(tmp_path, renamed, git=[offered("status", title="T")])
    assert found.entries["repo_status"].tool.listed["description"] == "short"
    assert found.entries["repo_status"].tool.listed["name"] == "repo_status"
    with pytest.raises(ManifestError, match="'repo_status' is taken"):
        catalog_of(tmp_path, renamed + NOTE.replace("name: note", "name: repo_status"), git=[offered("status")])


def test_one_tool_taken_by_two_documents_is_neither(tmp_path: Path) -> None:
    twice = GIT + "---\nkind: import\nname: again\nbackend: git\ntake: [status]\neffect: destroy\n"
    found = catalog_of(tmp_path, twice, git=[offered("status"), offered("log")])
    assert list(found.entries) == ["log"]
    assert "2 imports take it" in found.notes[0]
    apart = catalog_of(tmp_path, twice + "tools: {status: {rename: status2}}\n", git=[offered("status")])
    assert {name: entry.tool.effect for name, entry in apart.entries.items()} == {
        "status": "read",
        "status2": "destroy",
    }


# ---------------------------------------------------------------------------------------------- servers are not trusted


def test_what_a_server_says_is_kept_but_what_it_says_of_its_effect_is_not(tmp_path: Path) -> None:
    entry = offered(
        "status",
        title="Status",
        icons=[{"src": "data:,"}],
        _meta={"x": 1},
        future={"y": 2},
        outputSchema={"type": "object"},
        annotations={"readOnlyHint": True, "destructiveHint": False, "openWorldHint": False, "title": "S"},
        inputSchema={"type": "object", "properties": {"a": {"type": "string", "x-mcp-header": "A"}}},
    )
    found = catalog_of(tmp_path, GIT.replace("effect: read", "effect: destroy"), git=[entry]).entries["status"].tool
    assert found.listed == {
        **entry,
        "annotations": {
            "readOnlyHint": False, "destructiveHint": True, "idempotentHint": False,
            "openWorldHint": False, "title": "S",
        },
    }  # fmt: skip
    assert (found.effect, found.scopes, found.owner, found.backend) == ("destroy", {"git.read"}, "platform", "git")
    assert found.output_schema == {"type": "object"}
    assert found.action == "status"


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        (
            {"inputSchema": {"type": "object", "properties": {"a": {"$ref": "http://127.0.0.1:1/x"}}}},
            "nothing is fetched",
        ),
        ({"inputSchema": {"type": "objekt"}}, "not of type object"),
        ({"inputSchema": {"type": "object", "properties": []}}, "not valid JSON Schema"),
        ({"inputSchema": {"type": "object", "properties": {"a": {"type": "strng"}}}}, "not valid JSON Schema"),
        ({"inputSchema": {"type": "object", "anyOf": [{"const": n} for n in range(10_000)]}}, "10000 values"),
        ({"inputSchema": None}, "not an object"),
        ({"outputSchema": {"$ref": "#/none"}}, "output schema"),
        ({"outputSchema": 5}, "output schema"),
        ({"description": 5}, "description is not text"),
        ({"_meta": {"n": 2**70}}, "JSON cannot carry"),
        ({"description": "\ud800"}, "JSON cannot carry"),
    ],
)
def test_a_tool_that_cannot_be_used_is_left_out_with_a_note_and_the_others_stay(
    tmp_path: Path, entry: dict[str, Any], why: str
) -> None:
    found = catalog_of(tmp_path, GIT, git=[offered("log"), offered("status") | entry])
    assert list(found.entries) == ["log"]
    assert why in found.notes[0]
    assert "'status' of git is left out" in found.notes[0]


@pytest.mark.parametrize("name", [None, 5, "", "\ud800", "log\u202e", "log\x00"])
def test_a_name_that_is_none_harms_nobody(tmp_path: Path, name: Any) -> None:
    found = catalog_of(tmp_path, GIT, git=[offered("status"), {**offered("x"), "name": name}])
    assert "status" in found.entries
    assert all(is_name(known) for known in found.entries)
    assert all(note.isprintable() for note in found.notes)


def test_a_server_that_has_said_nothing_yet_gives_a_note_and_what_names_its_tools_waits(tmp_path: Path) -> None:
    rest = (
        "---\nkind: toolset\nname: t\ntools: [status, log_all, git_status, note]\n"
        "---\nkind: policy\nname: p\ntools: ['log*']\nrules: [{id: a, effect: hold}]\n"
    )
    found = catalog_of(tmp_path, GIT + NOTE + rest)
    assert list(found.entries) == ["note"]
    assert any("has not said what it offers" in note for note in found.notes)
    assert sum("may still bring it" in note for note in found.notes) == 3
    assert any("log* selects no tool now" in note for note in found.notes)
    with pytest.raises(ManifestError, match="there is no tool 'stauts'"):
        catalog_of(tmp_path, GIT + NOTE + "---\nkind: toolset\nname: t\ntools: [stauts]\n")


def test_a_tool_that_vanishes_or_changes_at_its_server_never_makes_the_catalog_impossible(tmp_path: Path) -> None:
    rest = "---\nkind: policy\nname: p\ntools: [status]\nrules: [{id: a, when: args.path == '/', effect: deny}]\n"
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {"path": {}},
        "required": ["path"],
        "additionalProperties": False,
    }
    found = catalog_of(tmp_path, GIT + rest, git=[offered("status", inputSchema=schema), offered("log")])
    assert list(found.entries) == ["log", "status"]
    changed: dict[str, Any] = {"type": "object", "properties": {"pfad": {}}, "additionalProperties": False}
    found = catalog_of(tmp_path, GIT + rest, git=[offered("status", inputSchema=changed), offered("log")])
    assert list(found.entries) == ["log"]
    assert "status is left out, rules[0].when cannot judge it: args.path is not an argument" in found.notes[0]
    assert list(catalog_of(tmp_path, GIT + rest, git=[offered("log")]).entries) == ["log"]


def test_injected_arguments_are_hidden_from_agents_and_refused_from_them(tmp_path: Path) -> None:
    text = GIT + "tools: {status: {inject: {tenant: caller.tenant}}}\n"
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {"tenant": {}, "path": {}},
        "required": ["tenant", "path"],
    }
    entry = catalog_of(tmp_path, text, git=[offered("status", inputSchema=schema)]).entries["status"]
    assert entry.tool.listed["inputSchema"] == {"type": "object", "properties": {"path": {}}, "required": ["path"]}
    assert entry.tool.inject == (("tenant", "caller.tenant"),)
    assert entry.faults({"path": "x"}) == ()
    assert "filled in by the broker" in entry.faults({"path": "x", "tenant": "other"})[0]
    gone = catalog_of(tmp_path, text, git=[offered("status")])
    assert not gone.entries
    assert "takes no such argument" in gone.notes[0]


def test_timeouts_come_from_the_backend_unless_the_tool_says_less(tmp_path: Path) -> None:
    text = GIT + HUB + "tools: {x: {caps: {timeout: 2s, result_bytes: 10KiB}}}\n"
    found = catalog_of(tmp_path, text, git=[offered("log")], hub=[offered("x"), offered("y")])
    assert {name: entry.tool.timeout_s for name, entry in found.entries.items()} == {"log": 30.0, "x": 2.0, "y": 5.0}
    assert found.entries["x"].tool.result_bytes == 10_240
    with pytest.raises(ManifestError, match="longer than backend 'hub' allows"):
        catalog_of(tmp_path, GIT + HUB + "tools: {x: {caps: {timeout: 9s}}}\n")
    with pytest.raises(ManifestError, match=r"tools\.z is not taken"):
        catalog_of(tmp_path, GIT + "tools: {z: {title: x}}\n")


# ------------------------------------------------------------------------------------------------------- manifest tools


def test_a_tool_without_input_takes_no_arguments_and_a_forgotten_key_lets_none_through(tmp_path: Path) -> None:
    text = GIT + NOTE + NOTE.replace("name: note", "name: open") + "input: {type: object, properties: {a: {}}}\n"
    found = catalog_of(
        tmp_path,
        text + NOTE.replace("name: note", "name: free") + "input: {type: object, additionalProperties: true}\n",
    )
    empty = found.entries["note"].tool
    assert empty.input_schema == {"type": "object", "properties": {}, "additionalProperties": False}
    assert found.entries["note"].faults({"a": 1})
    assert found.entries["open"].faults({"b": 1})
    assert not found.entries["open"].faults({"a": 1})
    assert not found.entries["free"].faults({"b": 1})


def test_what_agents_are_told_of_a_tool(tmp_path: Path) -> None:
    text = GIT + NOTE.replace("effect: read", "effect: write\nidempotent: true\nscopes: [s]") + (
        "title: A note\ndescription: Says hello.\nannotations: {audience: x}\noutput: {type: object}\n"
    )  # fmt: skip
    found = catalog_of(tmp_path, text).entries["note"].tool
    assert found.listed == {
        "name": "note",
        "title": "A note",
        "description": "Says hello.",
        "inputSchema": {"type": "object", "properties": {}, "additionalProperties": False},
        "outputSchema": {"type": "object"},
        "annotations": {
            "openWorldHint": False, "audience": "x", "readOnlyHint": False, "destructiveHint": False,
            "idempotentHint": True,
        },
    }  # fmt: skip
    assert (found.version, found.source, found.idempotent) == ("1", "tool_manifests/tools.yaml:23", True)


# ----------------------------------------------------------------------------------------------------------- visibility

THREE = (
    GIT + NOTE
    + NOTE.replace("name: note", "name: scoped") + "scopes: [s]\n"
    + NOTE.replace("name: note", "name: burn").replace("effect: read", "effect: destroy")
)  # fmt: skip


def test_a_caller_is_offered_what_it_may_use_in_the_order_of_the_names(tmp_path: Path) -> None:
    found = catalog_of(tmp_path, THREE, git=[offered("status")])
    assert names(found) == ["note", "status"]
    assert names(found, Principal(agent="x")) == ["note"]
    assert names(found, Principal(agent="x", scopes=frozenset({"s", "git.read"}))) == ["note", "scoped", "status"]
    assert any("nobody can call burn" in note for note in found.notes)


def test_what_lacks_a_scope_is_unlisted_but_there_and_what_is_in_no_toolset_is_not_there(tmp_path: Path) -> None:
    text = THREE + (
        "---\nkind: toolset\nname: all\nfor: {agents: [bot], groups: [g]}\ntools: ['*']\n"
        "---\nkind: toolset\nname: few\ntools: [note]\n"
    )  # fmt: skip
    found = catalog_of(tmp_path, text, git=[offered("status")])
    other = Principal(agent="other", scopes=frozenset({"s"}))
    assert names(found, other) == ["note"]
    assert found.resolve("scoped", other) is None
    assert found.resolve("nothing", other) is None
    assert found.resolve("scoped", BOT) is not None
    assert "scoped" not in names(found)
    assert found.resolve("scoped", Principal(agent="other", groups=frozenset({"g"}))) is not None
    assert names(found, Principal(agent="other", groups=frozenset({"g"}), scopes=frozenset({"s"}))) == [
        "note",
        "scoped",
    ]


def test_what_a_rule_denies_by_caller_alone_is_not_there(tmp_path: Path) -> None:
    text = (
        THREE
        + "---\nkind: policy\nname: p\ntools: [note]\nrules: [{id: a, when: 'caller.user == \"eve\"', effect: deny}]\n"
    )
    found = catalog_of(tmp_path, text)
    eve = Principal(agent="bot", user="eve")
    assert found.resolve("note", eve) is None
    assert "note" not in names(found, eve)
    assert found.resolve("note", BOT) is not None
    assert "note" in names(found, Principal(agent="bot", user="ann"))


def test_a_listing_is_shared_by_callers_that_see_the_same_and_kept_for_a_bounded_number(tmp_path: Path) -> None:
    found = catalog_of(tmp_path, THREE)
    first = found.listing(Principal(agent="a", user="ann"))
    assert found.listing(Principal(agent="b", tenant="t")) is first
    for number in range(300):
        found.listing(Principal(agent="a", scopes=frozenset({f"s{number}"})))
    assert found.listing(Principal(agent="a")) is not first
    assert [entry.tool.name for entry in found.listing(Principal(agent="a"))] == ["note"]


# ----------------------------------------------------------------------------------------------- policies come together


def test_an_entry_decides_charges_explains_and_keeps(tmp_path: Path) -> None:
    text = GIT + NOTE.replace("effect: read", "effect: write") + (
        "input: {type: object, properties: {amount: {type: number}, token: {}}, required: [amount]}\n"
        "---\nkind: policy\nname: p\ntools: [note]\nrules:\n  - {id: small, when: args.amount <= 50, effect: allow}\n"
        "  - {id: big, when: args.amount > 50, effect: hold, reviewers: {scopes: [r]}}\n"
        "---\nkind: quota\nname: money\ncost: {limit: 10, per: day, amount: args.amount, currency: EUR}\nby: [user]\n"
        "---\nkind: quota\nname: rate\nrate: {limit: 5, per: 1m}\nby: [tool]\ntools: [other, note]\n"
        + NOTE.replace("name: note", "name: other")
        + "input: {type: object, properties: {amount: {}}, required: [amount]}\n"
        + "---\nkind: toolset\nname: t\ntools: ['*']\n"
    )  # fmt: skip
    catalog = catalog_of(tmp_path, text)
    entry = catalog.entries["note"]
    assert entry.decide(BOT, {"amount": 5}, 0).rule == "p/small"
    held = entry.decide(BOT, {"amount": 51}, 0)
    assert held.terms is not None
    assert (held.outcome, held.terms.scopes) == ("hold", ("r",))
    charges = entry.charges(BOT, {"amount": 5}, 0)
    assert [(charge.quota, charge.bucket, charge.amount) for charge in charges] == [
        ("money", "user=agent:bot", 5_000_000),
        ("rate", "tool=note", 1),
    ]
    free = entry.decide(BOT, {"amount": 0}, 0)
    assert (free.outcome, free.rule) == ("deny", "quota/money")
    assert [finding.rule for finding in entry.explain(BOT, {"amount": 51}, 0)] == [
        "toolset/t",
        "p/small",
        "p/big",
        "quota/money",
    ]
    arguments = {"amount": 5, "token": "canary"}
    kept = entry.redaction.kept(arguments, canonical(arguments), lambda _path, _value: b"")
    assert orjson.loads(kept.clear or b"") == {"amount": 5, "token": "[redacted]"}
    assert catalog.may_hold
    assert catalog.all_scopes == {"git.read", "r", "broker.review"} - {"git.read"}


# ------------------------------------------------------------------------------------------------------------- versions


def test_equal_manifests_and_offers_give_equal_versions_in_any_order(tmp_path: Path) -> None:
    one = catalog_of(tmp_path, THREE, git=[offered("status"), offered("log")])
    two = catalog_of(tmp_path, THREE, git=[offered("log"), dict(reversed(offered("status").items()))])
    assert one.version == two.version
    assert one.entries["log"].tool.definition == two.entries["log"].tool.definition


@pytest.mark.parametrize(
    ("old", "new", "redefined"),
    [
        ("text: hello", "text: hallo", True),
        ("effect: read\nbackend: notes", "effect: write\nbackend: notes", True),
        ("name: notes\nstatic: {}", "name: notes\nstatic: {}\n", False),
        ("limit: 5", "limit: 6", False),
        ("args", "args", False),
        ("effect: deny", "effect: hold", False),
        ("owner: me", "owner: you", False),
        ("redact: []", "redact: [x]", False),
        ("description: old", "description: new", True),
    ],
)
def test_the_version_changes_with_whatever_matters_and_a_definition_only_with_what_was_promised(
    tmp_path: Path, old: str, new: str, redefined: bool
) -> None:
    text = GIT + NOTE + (
        "owner: me\nredact: []\ndescription: old\ninput: {type: object, properties: {x: {}}}\n"
        "---\nkind: policy\nname: p\nrules: [{id: a, when: size(args) > 1, effect: deny}]\n"
        "---\nkind: quota\nname: q\nrate: {limit: 5, per: 1m}\nby: []\n"
    )  # fmt: skip
    assert old in text
    before, after = catalog_of(tmp_path, text), catalog_of(tmp_path, text.replace(old, new))
    same = text.replace(old, new).split() == text.split()
    assert (before.version == after.version) is same
    assert (before.entries["note"].tool.definition != after.entries["note"].tool.definition) is redefined


def test_a_definition_is_bound_to_its_backend(tmp_path: Path) -> None:
    one = catalog_of(tmp_path, GIT, git=[offered("log")])
    two = catalog_of(tmp_path, GIT.replace("server: {}", "server: {timeout: 9}"), git=[offered("log")])
    assert one.entries["log"].tool.definition != two.entries["log"].tool.definition
    assert one.backends["git"].digest != two.backends["git"].digest
    assert one.backends["notes"].digest == two.backends["notes"].digest


def test_every_problem_is_raised_together_and_no_partial_catalog_comes_out(tmp_path: Path) -> None:
    manifests = read(
        tmp_path, THREE + "---\nkind: toolset\nname: t\ntools: [note, a]\n---\nkind: toolset\nname: u\ntools: [b]\n"
    )
    with pytest.raises(ManifestError) as error:
        compile_catalog(manifests, KINDS, {"git": Offer(())}, hold=HoldSettings())
    assert len(error.value.problems) == 2


def test_the_shelf_swaps_whole_catalogs_and_tells_subscribers_of_changes_only(tmp_path: Path) -> None:
    shelf, told = Shelf(Catalog.empty()), list[str]()
    leave = shelf.subscribe(lambda: told.append(shelf.current.version))
    first = catalog_of(tmp_path, THREE)
    shelf.swap(first)
    shelf.swap(catalog_of(tmp_path, THREE))
    assert told == [first.version]
    leave()
    leave()
    shelf.swap(Catalog.empty())
    assert told == [first.version]
    assert shelf.current.entries == {}


def test_the_manifests_that_come_with_the_broker_are_valid() -> None:
    from broker.catalog.reader import read_manifests

    folder = Path(__file__).parents[2] / "tool_manifests"
    found = compile_catalog(read_manifests(folder, KINDS), KINDS, {}, hold=HoldSettings())
    assert found.entries
    assert not found.notes
