"""No page of the console gets slower with the records: whatever is asked for one is found by an index, or within a
bounded number of the newest. How long that takes with a million calls is for `make test-pages` to say."""

from __future__ import annotations

import re
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from broker.faces import office, web
from broker.faces.cli.beside import office_of
from broker.faces.console import PAGES
from broker.model.invocation import InvocationQuery
from broker.model.principal import Principal
from broker.stores.sqlite import store, sweep
from broker.stores.sqlite.database import connect
from tests.bench.console import MANIFEST, PEOPLE, pages, sign_in
from tests.bench.seed import seed
from tests.premises import house_with
from tests.world import broker_with, settings_in

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


@pytest.mark.parametrize(
    "query", [{}, {"agent": "agent-03"}, {"user": "user-14"}, {"states": ("failed",)}, {"user": "nobody"}]
)
@pytest.mark.parametrize("scopes", [{"broker.review"}, set[str]()])
async def test_pages_made_in_haste_show_each_call_once(
    scopes: set[str], query: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed(tmp_path / "broker.db", 150, held=5)
    who = Principal("console", user="USER-14", tenant="acme", issuer="https://issuer.example", scopes=frozenset(scopes))
    async with broker_with(tmp_path, MANIFEST) as broker:
        looking, asked = office_of(broker), InvocationQuery(**query)
        every = await broker.store.invocations(InvocationQuery(within="acme", limit=1000))
        found = await broker.store.invocations(replace(asked, within="acme", limit=1000))
        expected = [one.call_id for one in found if looking.sees(who, one)]
        monkeypatch.setattr(office, "HASTE_S", 0)
        monkeypatch.setattr(office, "STEP", 7)

        async def shown(going: str, place: str) -> list[str]:
            ids: list[str] = []
            while True:
                page = await looking.page(who, replace(asked, limit=4, **{going: place}), hurried=True)
                ids += [one.call_id for one in page.items]
                if not page.next:
                    return ids
                place = page.next

        assert await shown("before", "") == expected
        oldest = every[-1].call_id
        assert await shown("after", oldest) == [one for one in expected[::-1] if one != oldest]


@pytest.mark.parametrize("sql", sweep.OLD_RESULTS)
def test_tidying_results_does_not_walk_through_all_that_is_kept(sql: str, tmp_path: Path) -> None:
    seed(tmp_path / "broker.db", 3)
    with closing(connect(tmp_path / "broker.db")) as db:
        steps = [row[3] for row in db.execute(f"explain query plan {sql}", (1, 1, 1, 1))]
    assert not [step for step in steps if step.startswith("SCAN") and "USING COVERING INDEX payload_" not in step]


def test_no_piece_of_an_answer_waits_for_the_one_before_to_be_acknowledged(tmp_path: Path) -> None:
    with (
        web.bind(settings_in(tmp_path, MANIFEST, listen={"port": 0})) as bound,
        socket.create_connection(bound.getsockname()),
        bound.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
