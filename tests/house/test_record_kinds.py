"""Every kind of entry that is written is in the one table, and the page of the record shows that table."""

from __future__ import annotations

import re
from pathlib import Path

import broker
from broker.model.ledger import KINDS
from broker.stores.sqlite.ledger import RESERVED

ROOT = Path(broker.__file__).parent
PAGE = ROOT.parent / "docs" / "record.md"
WRITTEN = re.compile(
    r"""(?:\b_?note|ledger\.append|self\._append|\.changed|Tally|events\.append|sums\.add)\(\s*\(?\s*"([a-z_]+)"|at_ms=[\w.]+,\s*kind="([a-z_]+)\"""",
)
OF_CALLS = {"intent", "held", "denied"}  # chosen by admission, from the state


def written() -> dict[str, str]:
    found: dict[str, str] = {}
    for path in sorted(ROOT.rglob("*.py")):
        text = path.read_text("utf-8")
        found.update({match[1] or match[2]: path.name for match in WRITTEN.finditer(text)})
    return found


def test_every_kind_that_is_written_is_in_the_table_and_the_other_way_round() -> None:
    found = written()
    assert found.keys() - KINDS.keys() == set(), "add it to broker/model/ledger.py"
    assert KINDS.keys() - found.keys() - OF_CALLS == set(), "no code writes it"
    assert KINDS.keys() > OF_CALLS


def test_kinds_of_the_store_are_kinds() -> None:
    assert KINDS.keys() >= RESERVED


def test_the_page_shows_the_table() -> None:
    section = PAGE.read_text("utf-8").partition("\n## Kinds\n")[2].partition("\n## ")[0]
    assert dict(re.findall(r"^\| `([a-z_]+)` \| (.+) \|$", section, re.MULTILINE)) == dict(KINDS)
