"""A folder of manifests: everything wrong is told at once, with its place and what would be right."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from broker.catalog.manifest import json_schema
from broker.catalog.reader import read_manifests
from broker.document import parse
from broker.errors import ManifestError
from tests.catalogs import KINDS, catalog_of, folder_with, read

NOTES = "kind: backend\nname: notes\nstatic: {}\n"
TOOL = "---\nkind: tool\nname: note\neffect: read\nbackend: notes\nstatic: {text: hello}\n"

SYNTAX = (
    "f.yaml:1:8: not valid YAML: expected the node content, but found '<stream end>' while parsing a flow node; "
    "a quote or bracket is not closed"
)


def problems(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(ManifestError) as error:
        catalog_of(tmp_path, text)
    return [str(problem).removeprefix("tool_manifests/tools.yaml:") for problem in error.value.problems]


def test_a_folder_is_read_whole_in_the_order_of_its_paths(tmp_path: Path) -> None:
    folder = folder_with(
        tmp_path,
        b__yaml=NOTES,
        a__json='{\n\t"kind": "quota", "name": "q", "rate": {"limit": 1, "per": "1m"}, "by": []}',
    )
    (folder / "team").mkdir()
    (folder / "team" / "tool.yml").write_text(TOOL)
    (folder / ".hidden.yaml").write_text("nonsense: [")
    (folder / "x.schema.json").write_text("{}")
    (folder / "README.md").write_text("no manifest")
    found = read_manifests(folder, KINDS)
    assert found.files == 3
    assert [declared.source for declared in (*found.quotas, *found.backends, *found.tools)] == [
        "tool_manifests/a.json:1",
        "tool_manifests/b.yaml:1",
        "tool_manifests/team/tool.yml:2",
    ]


def test_a_manifest_that_cannot_be_read_is_told_and_not_left_out(tmp_path: Path) -> None:
    """It may be the one with the rule that forbids."""
    folder = folder_with(tmp_path, a__yaml=NOTES)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (folder / "moved.yaml").symlink_to(elsewhere / "gone.yaml")
    (folder / "team").symlink_to(elsewhere)
    os.mkfifo(folder / "pipe.yml")
    (folder / "dir.yaml").mkdir()
    (folder / "LOUD.YAML").write_text("nonsense: [")
    (folder / ".data").symlink_to(elsewhere)
    (folder / "notes.txt").symlink_to(elsewhere / "gone.txt")
    with pytest.raises(ManifestError) as error:
        read_manifests(folder, KINDS)
    assert [
        str(problem).partition("manifests/")[2].split(" ")[0].split(":")[0] for problem in error.value.problems
    ] == [
        "LOUD.YAML",
        "moved.yaml",
        "pipe.yml",
        "team",
    ]


def test_an_empty_folder_is_an_empty_catalog_and_a_missing_one_an_error(tmp_path: Path) -> None:
    assert read_manifests(folder_with(tmp_path), KINDS).files == 0
    with pytest.raises(ManifestError, match="no such folder"):
        read_manifests(tmp_path / "none", KINDS)


def test_every_problem_of_every_file_is_told_at_once(tmp_path: Path) -> None:
    folder = folder_with(
        tmp_path,
        a__yaml=NOTES + "---\nkind: tol\nname: x\n---\njust text\n---\nname: y\n",
        b__yaml=TOOL.replace("effect: read", "effect: reed").replace("backend", "backnd"),
        c__yaml="kind: policy\nname: p\ntools: [note, nota]\nrules:\n  - {id: a, when: args.x == 1, effect: deny}\n"
        "  - {id: b, when: caller.agnt == '', effect: alow}\n",
        d__yaml="kind: quota\nname: q\nrate: {limit: -1, per: 1h30}\nby: []\nname: q\n",
        e__yaml="kind: tool\nname: other\neffect: read\nbackend: nots\nstatic: {text: x}\n",
        f__yaml="kind: [",
    )
    with pytest.raises(ManifestError) as error:
        read_manifests(folder, KINDS)
    assert [str(problem).removeprefix("tool_manifests/") for problem in error.value.problems] == [
        "a.yaml:5:7: unknown kind 'tol'; did you mean 'tool'?",
        "a.yaml:8:1: a document is a mapping with `kind` and `name`",
        "a.yaml:10:1: missing key `kind`; one of backend, tool, import, policy, quota, toolset",
        "b.yaml:2:1: backend: missing key (The backend that answers)",
        "b.yaml:4:9: effect: must be read, write or destroy, not 'reed'; did you mean 'read'?",
        "b.yaml:5:1: unknown key 'backnd'; did you mean 'backend'?",
        "c.yaml:6:19: rules[1].when: unknown name 'caller.agnt' (line 1, character 7); did you mean 'caller.agent'?",
        "c.yaml:6:46: rules[1].effect: must be allow, deny or hold, not 'alow'; did you mean 'allow'?",
        "d.yaml:3:15: rate.limit: must be greater than or equal to 1",
        "d.yaml:3:24: rate.per: expected a duration such as 500ms, 10s, 5m, 2h or 1d, or a number of seconds",
        "d.yaml:5:1: duplicate key 'name'; it stands first in line 2",
        "e.yaml:4:10: backend: there is no backend 'nots'; did you mean 'notes'?",
        SYNTAX,
    ]


def test_what_refers_to_a_broken_document_is_not_reported_as_well(tmp_path: Path) -> None:
    text = NOTES.replace("static: {}", "statc: {}") + TOOL + "---\nkind: toolset\nname: t\ntools: [note, nothing]\n"
    assert problems(tmp_path, text) == [
        "3:1: unknown key 'statc'; did you mean 'static'?",
        "13:15: tools[1]: there is no tool 'nothing'",
    ]


@pytest.mark.parametrize(
    "name", ["ä", "а_cyrillic", "a b", "a.b", "", "x" * 65, "a\u200bb", "refund\u0430", "${env:X}"]
)
@pytest.mark.parametrize("kind", ["tool", "toolset"])
def test_names_are_plain_ascii(tmp_path: Path, name: str, kind: str) -> None:
    document = TOOL.replace("name: note", f'name: "{name}"')
    if kind == "toolset":
        document = f'---\nkind: toolset\nname: "{name}"\ntools: [note]\n'
    (told,) = problems(tmp_path, NOTES + document)
    assert "name: a name has 1 to 64" in told


CARD = """input:
  type: object
  properties:
    card: {type: object, properties: {number: {type: string}}}
    cards: {type: array, items: {type: object, properties: {number: {type: string}}}}
    open: {type: object, properties: {a: {}}, additionalProperties: true}
    either: {anyOf: [{type: object, properties: {a: {}}}, {type: string}]}
"""


def test_a_path_that_may_be_there_is_taken(tmp_path: Path) -> None:
    paths = ["card", "card.number", "cards.number", "open.x", "either.x", "card.number.x"]
    catalog_of(tmp_path, NOTES + "---\n" + TOOL + CARD + f"redact: {paths}\n".replace("'", '"'))


@pytest.mark.parametrize(
    ("second", "word"), [("note", "there is already one"), ("NOTE", "looks like 'note'"), ("Note", "looks like 'note'")]
)
def test_two_names_that_look_alike_are_refused(tmp_path: Path, second: str, word: str) -> None:
    (told,) = problems(tmp_path, NOTES + TOOL + TOOL.replace("name: note", f"name: {second}"))
    assert word in told
    assert "(tool_manifests/tools.yaml:5)" in told
    assert catalog_of(tmp_path, NOTES + TOOL + TOOL.replace("name: note", "name: note2")).entries.keys() == {
        "note",
        "note2",
    }


@pytest.mark.parametrize("name", ["broker_x", "BROKER_held_call", "Broker_"])
def test_the_brokers_own_names_are_reserved(tmp_path: Path, name: str) -> None:
    (told,) = problems(tmp_path, NOTES + TOOL.replace("name: note", f"name: {name}"))
    assert "broker's own" in told


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ("caps: {timeout: 1h30}", "caps.timeout: expected a duration"),
        ("caps: {timeout: 60s}", "caps.timeout: 60 s is longer than backend 'notes' allows (30 s)"),
        ("scopes: ['a b']", "scopes[0]: a scope has"),
        ("version: 1", "version: must be text; put it in quotes"),
        ("idempotent: no", "idempotent: must be true or false"),
        ("record: all", "must be none, digest, hmac, redacted or full"),
        ("annotations: {readOnlyHint: false}", "readOnlyHint follow from `effect`"),
        ("inject: {x: caller.name}", "did you mean 'caller.agent'"),
        ("server: {}", "unknown key 'server'"),
        ("input: {type: array}", "input: arguments are an object"),
        ("input: {properties: {a: {}}}", "input: arguments are an object"),
        ("input: {type: object, properties: {a: {type: strng}}}", "input: is not valid JSON Schema"),
        ("input: {type: object, properties: {a: {$ref: 'http://x/y'}}}", "input: a $ref points into this schema"),
        ("output: {type: string}", "output: structured content is an object"),
        ("inject: {a: caller.user}\ninput: {type: object, properties: {a: {}}}", "inject.a: `input` has it too"),
        (CARD + "redact: [card.nmber]", "'nmber' is no argument; did you mean 'number'?"),
        (CARD + "redact: [cards.nmber]", "'nmber' is no argument"),
        (CARD + "record: {fields: {crad: none}}", "record.fields: 'crad' is no argument; did you mean 'card'?"),
        (CARD + "record: {fields: {card.nmber: hmac}}", "'nmber' is no argument"),
        ("caps: {result_bytes: 99999999999999999999GiB}", "below 4 EiB"),
        ("caps: {result_bytes: 99999999999999999999}", "64 bits"),
        (f"caps: {{result_bytes: {'9' * 400}B}}", "below 4 EiB"),
        ("redact: [cart.number]\ninput: {type: object, properties: {card: {}}}", "did you mean 'card'?"),
        ("result: {select: 'a['}", "result.select: not a JMESPath expression"),
    ],
)
def test_a_tool_that_cannot_work_is_told_where_it_is_wrong(tmp_path: Path, part: str, told: str) -> None:
    found = problems(tmp_path, NOTES + TOOL + part)
    assert any(told in line for line in found), found
    assert all(line[0].isdigit() for line in found)


def test_a_fault_of_a_schema_is_told_at_its_very_place(tmp_path: Path) -> None:
    text = NOTES + TOOL + "input:\n  type: object\n  properties:\n    a:\n      type: strng\n"
    (told,) = problems(tmp_path, text)
    assert told.startswith("14:13: input: is not valid JSON Schema 2020-12; a type is string, integer, number, boolean")


def test_a_tool_and_its_backend_must_be_of_one_kind(tmp_path: Path) -> None:
    server = NOTES + "---\nkind: backend\nname: git\nserver: {}\n"
    assert "come by `kind: import`" in problems(tmp_path, server + TOOL.replace("backend: notes", "backend: git"))[0]
    assert "missing key `static`" in problems(tmp_path, NOTES + TOOL.replace("static: {text: hello}\n", ""))[0]
    assert "`text`, `structured` or both" in problems(tmp_path, NOTES + TOOL.replace("{text: hello}", "{}"))[0]
    assert "exactly one of" in problems(tmp_path, "kind: backend\nname: notes\n")[0]
    assert "exactly one of" in problems(tmp_path, NOTES + "server: {}\n")[0]
    taken = NOTES + "---\nkind: import\nname: i\nbackend: notes\ntake: [a]\neffect: read\n"
    assert "offers nothing; write `kind: tool`" in problems(tmp_path, taken)[0]


# ----------------------------------------------------------------------------------------------------------- references


def test_a_schema_may_stand_in_a_file_and_its_faults_are_told_there(tmp_path: Path) -> None:
    folder = folder_with(tmp_path)
    (folder / "note.schema.json").write_text('{"type": "object",\n "properties": {"a": {"type": "string"}}}')
    text = NOTES + TOOL + "input: {file: note.schema.json}\n"
    assert catalog_of(tmp_path, text).entries["note"].faults({"a": 1}) == ("$.a must be a string",)
    (folder / "note.schema.json").write_text('{"type": "object",\n "properties": {"a": {"type": "strng"}}}')
    with pytest.raises(ManifestError) as error:
        catalog_of(tmp_path, text)
    assert str(error.value.problems[0]).startswith(
        "tool_manifests/note.schema.json:2:31: input: is not valid JSON Schema"
    )


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("no.schema.json", "there is no file"),
        ("note.json", "*.schema.json"),
        ("../../out.schema.json", "lies in the folder"),
        ("/etc/x.schema.json", "lies in the folder"),
        ("5", "*.schema.json"),
    ],
)
def test_a_schema_file_lies_in_the_folder_and_is_named_as_one(tmp_path: Path, name: str, word: str) -> None:
    (tmp_path / "out.schema.json").write_text("{}")
    assert word in problems(tmp_path, NOTES + TOOL + f"input: {{file: {name}}}\n")[0]


POLICY = "---\nkind: policy\nname: p\n{}\nrules: [{{id: r, when: '{}', effect: deny}}]\n"
ORDER = (
    "---\nkind: tool\nname: order\neffect: read\nbackend: notes\nstatic: {text: x}\n"
    "owner: shop\ninject: {tenant: caller.tenant}\n"
    "input: {type: object, properties: {amount: {type: number}, note: {type: string}}, required: [amount]}\n"
)


@pytest.mark.parametrize(
    ("when", "told"),
    [
        ("args.amout > 5", "args.amout is not an argument; did you mean amount? (tool order)"),
        ('args["amout"] > 5', "args.amout is not an argument"),
        ('args.note == ""', "args.note is optional, and a missing value denies; write has(args.note) && …"),
        ('has(args.nota) && args.nota == ""', "did you mean note?"),
        ('args.tenant == ""', "filled in by the broker and not among args; use caller.tenant"),
    ],
)
def test_a_rule_names_arguments_that_its_tools_have(tmp_path: Path, when: str, told: str) -> None:
    (found,) = problems(tmp_path, NOTES + ORDER + POLICY.format("tools: [order]", when))
    assert told in found


@pytest.mark.parametrize(
    "when",
    ["args.amount > 5", 'has(args.note) && args.note == ""', '"note" in args && args.note == ""', "size(args) > 9"],
)
def test_a_rule_that_names_them_right_is_accepted(tmp_path: Path, when: str) -> None:
    assert catalog_of(tmp_path, NOTES + ORDER + POLICY.format("tools: [order]", when)).entries["order"].rules.rules


def test_one_fault_for_many_tools_is_told_once(tmp_path: Path) -> None:
    tools = "".join(TOOL.replace("name: note", f"name: note{n}") for n in range(9))
    (found,) = problems(tmp_path, NOTES + tools + POLICY.format("", "args.x == 1"))
    assert "(tool note0, note1, note2 and 6 more)" in found


@pytest.mark.parametrize(
    ("selection", "told"),
    [
        ("tools: [ordr]", "tools[0]: there is no tool 'ordr'; did you mean 'order'?"),
        ("tools: ['pay_*']", "tools: pay_* selects no tool"),
        ("backend: [nots]", "backend[0]: there is no backend 'nots'; did you mean 'notes'?"),
        ("owner: [shpo]", "owner[0]: nobody called 'shpo' owns a tool; did you mean 'shop'?"),
        ("tools: [order]\nowner: [shop]", "give one of `tools`, `backend` and `owner`"),
        ("tools: []", "at least 1 item"),
    ],
)
def test_a_selection_that_means_nothing_is_refused(tmp_path: Path, selection: str, told: str) -> None:
    (found,) = problems(tmp_path, NOTES + ORDER + POLICY.format(selection, "true"))
    assert told in found


@pytest.mark.parametrize(
    "selection", ["tools: [order]", "tools: ['ord*', note]", "backend: ['n*']", "owner: [shop]", ""]
)
def test_each_way_of_selecting_selects(tmp_path: Path, selection: str) -> None:
    found = catalog_of(tmp_path, NOTES + ORDER + TOOL + POLICY.format(selection, "true"))
    assert found.entries["order"].rules.rules


def test_a_lease_outlives_the_longest_call(tmp_path: Path) -> None:
    quota = "---\nkind: quota\nname: q\nconcurrency: {limit: 2%s}\nby: []\n"
    assert "write at least 35s" in problems(tmp_path, NOTES + TOOL + quota % ", lease: 10s")[0]
    assert catalog_of(tmp_path, NOTES + TOOL + quota % ", lease: 35s").entries["note"].meters[0].width_ms == 35_000
    assert catalog_of(tmp_path, NOTES + TOOL + quota % "").entries["note"].meters[0].width_ms == 60_000


def test_names_are_unique_per_kind_and_rules_per_policy(tmp_path: Path) -> None:
    policy = POLICY.format("", "true")
    assert "policy 'p': there is already one" in problems(tmp_path, NOTES + TOOL + policy + policy)[0]
    twice = "---\nkind: policy\nname: p\nrules: [{id: a, effect: allow}, {id: A, effect: deny}]\n"
    assert "two rules are called 'A'" in problems(tmp_path, NOTES + TOOL + twice)[0]
    assert catalog_of(tmp_path, NOTES.replace("notes", "note") + TOOL.replace("notes", "note")).entries.keys() == {
        "note"
    }


def test_what_belongs_to_holds_is_refused_on_other_rules(tmp_path: Path) -> None:
    text = "---\nkind: policy\nname: p\nrules: [{id: a, effect: deny, expires: 4h}]\n"
    assert "belongs to rules that hold" in problems(tmp_path, NOTES + TOOL + text)[0]


# --------------------------------------------------------------------------------------------------- schema for editors


def test_the_published_schema_accepts_what_the_reader_accepts_and_refuses_what_it_refuses(tmp_path: Path) -> None:
    validator = jsonschema_rs.Draft202012Validator(json_schema(KINDS))
    text = NOTES + TOOL + ORDER + POLICY.format("tools: [order]", "args.amount > 5") + (
        "---\nkind: quota\nname: q\nrate: {limit: 5, per: 1m}\nby: [agent]\n"
        "---\nkind: toolset\nname: t\nfor: {agents: [a]}\ntools: ['*']\n"
        "---\nkind: backend\nname: git\nserver: {}\n"
        "---\nkind: import\nname: i\nbackend: git\ntake: [a, 'b*']\neffect: read\ntools: {a: {rename: c}}\n"
    )  # fmt: skip
    assert read(tmp_path, text)
    for document in parse(text.encode(), "").documents:
        assert validator.is_valid(document.data), document.data
        broken: dict[str, Any] = {**document.data, "no_such_key": 1}
        assert not validator.is_valid(broken)
    assert not validator.is_valid({"kind": "tol", "name": "x"})
    assert not validator.is_valid({"kind": "tool", "name": "x"})
