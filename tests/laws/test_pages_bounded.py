"""No page of the console gets slower with the records: whatever is asked for one is found by an index, or within a
bounded number of the newest. How long that takes with a million calls is for `make test-pages` to say."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import pytest

from broker.faces.console import PAGES
from broker.stores.sqlite import store
from broker.stores.sqlite.database import connect
from tests.bench.console import MANIFEST, PEOPLE, pages, sign_in
from tests.bench.seed import seed
from tests.premises import house_with

pytestmark = pytest.mark.anyio

GROWING = "invocation|i|entry|payload|k|hold|h|digest_user|argument_mac"  # tables, and what queries call them
WALKS = re.compile(rf"^SCAN ({GROWING})\b(?! USING (COVERING )?INDEX invocation_open)")
"""All of a table or of an index of it, but for the index of what is open, which a setting bounds."""


def walked(db: sqlite3.Connection, sql: str) -> list[str]:
    return [step[3] for step in db.execute(f"explain query plan {sql}") if WALKS.match(step[3])]


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """What readers of the store ask, with its values."""
    found: set[str] = set()

    def traced(path: Path, read_only: bool = False, **more: Any) -> sqlite3.Connection:
        opened = connect(path, read_only, **more)
        if read_only:
            opened.set_trace_callback(found.add)
        return opened

    monkeypatch.setattr(store, "connect", traced)
    seed(tmp_path / "broker.db", 300, held=30)
    yield found


@pytest.mark.parametrize("name", PEOPLE)
async def test_no_page_walks_through_all_records(name: str, asked: set[str], tmp_path: Path) -> None:
    tenant, scopes = PEOPLE[name]
    seen: set[str] = set()
    async with house_with(tmp_path, MANIFEST) as house:
        house.person(name, scopes, tenant=tenant)
        async with httpx2.AsyncClient(base_url=house.url, trust_env=False, timeout=20, follow_redirects=True) as http:
            await sign_in(http, house.url, name)
            with closing(connect(tmp_path / "broker.db", read_only=True)) as db:
                for path in await pages(house, tenant):
                    asked.clear()
                    await http.get(f"/console{path}")
                    seen.add(f"/console{path}".partition("?")[0])
                    for sql in [one for one in asked if one.lower().startswith("select")]:
                        assert walked(db, sql) == [], (path, sql)
    assert set(PAGES) <= seen


@pytest.mark.parametrize(
    ("sql", "walks"),
    [
        ("select * from invocation where state = 'failed'", True),
        ("select * from invocation i where i.id > 7 and i.state = 'failed'", False),
        ("select count(*) from entry", True),
    ],
)
def test_what_walks_through_all_records_is_found(sql: str, walks: bool, tmp_path: Path) -> None:
    seed(tmp_path / "broker.db", 3)
    with closing(connect(tmp_path / "broker.db", read_only=True)) as db:
        assert bool(walked(db, sql)) == walks
