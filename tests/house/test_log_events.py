"""Every line the broker logs is in the one table of docs/monitoring.md: an operator may set an alert on its words."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import broker

ROOT = Path(broker.__file__).parent
PAGE = ROOT.parent / "docs" / "monitoring.md"
LEVELS = ("exception", "error", "warning", "info", "debug")
Row = tuple[str, str, frozenset[str]]


def lines() -> Iterator[Row]:
    """(event, level, facts) of each call of `log`."""
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name("log"), attr=level), args=[event], keywords=facts):
                    assert isinstance(event, ast.Constant), f"{path.name}:{node.lineno}: an event is a fixed sentence"
                    names = frozenset(one.arg for one in facts if one.arg and one.arg != "exc_info")
                    yield str(event.value), level, names
                case ast.Call(func=ast.Attribute(value=ast.Name("log"), attr=level)) if level in LEVELS:
                    raise AssertionError(f"{path.name}:{node.lineno}: facts stand beside the event, by name")
                case _:
                    pass


def table() -> list[Row]:
    section = PAGE.read_text("utf-8").partition("\n## Log lines\n")[2].partition("\n## ")[0]
    found = re.findall(r"^\| `(.+)` \| (\w+) \| (.*)\|$", section, re.MULTILINE)
    return [(event, level, frozenset(re.findall(r"`(\w+)`", facts))) for event, level, facts in found]


def test_the_page_has_every_line_with_its_level_and_facts_and_no_other() -> None:
    said: dict[tuple[str, str], frozenset[str]] = {}
    for event, level, facts in lines():
        said[event, level] = said.get((event, level), frozenset()) | facts
    assert len(said) > 30, "they are found at all"
    assert {(event, level): facts for event, level, facts in table()} == said


def test_no_fact_of_a_line_is_one_that_holds_what_callers_send() -> None:
    for event, _, facts in lines():
        assert not facts & {"arguments", "args", "result", "body", "token", "headers", "message"}, event
