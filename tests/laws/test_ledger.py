"""The ledger shows every change: of any column of any table, by deleting, inserting, swapping, cutting or rewriting."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager, nullcontext
from io import BytesIO
from pathlib import Path
from typing import Any

import anyio
import pytest

from broker.errors import RecordUnavailable
from broker.model.hold import Review
from broker.ports import Store
from broker.stores.sqlite.database import migrate
from broker.stores.sqlite.ledger import whole
from broker.stores.sqlite.schema import MIGRATIONS
from broker.verifier import Fault, join, verify, write_anchor
from broker.verifier.records import OpenCall, Records
from broker.verifier.usual import Row
from tests import second_verifier
from tests.records import NOW, count, held_intent, intent, open_store, outcome


async def live_a_little(store: Store, round_: int) -> None:
    """A bit of everything that is recorded."""
    plain, failed, again = intent(charges=(count(500),)), intent(agent="cat"), intent(charges=(count(500),))
    worse = intent()
    for call in (plain, failed, again, worse):
        await store.admit(call)
    await store.admit(intent(refusal=("forbidden", "authorise", "no")))
    await store.finish(outcome(plain.call_id))
    await store.finish(outcome(failed.call_id, state="failed", code="backend_rejected", message="no"))
    usual: dict[str, Any] = {"laps_us": {"resolve": 3, "dispatch": 900}, "is_plain": True}
    await store.finish(outcome(again.call_id, **usual))
    await store.finish(outcome(worse.call_id, state="failed", code="backend_rejected", message="no", **usual))
    for number, decision in enumerate(("approve", "reject")):
        held = held_intent(arguments={"round": round_, "number": number}, charges=(count(500),))
        await store.admit(held)
        await store.review(Review(held.call_id, decision, "rita", "why", NOW + 1, "cli"))  # type: ignore[arg-type]
        if decision == "approve":
            await store.claim(held.call_id, NOW + 2)
            await store.finish(outcome(held.call_id, result=b"{}"))
            await store.collect(held.call_id, held.caller.principal_key, NOW + 9)
    await store.note("reload", {"version": "sha256:x"})
    other = intent(agent="dog", charges=(count(500),))
    await store.admit(other)
    await store.finish(outcome(other.call_id, **usual))
    await store.admit(held_intent(arguments={"round": round_, "open": True}))


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with two chains that have ended."""
    folder = tmp_path_factory.mktemp("lived")

    async def live() -> None:
        for round_ in range(2):
            store = await open_store(folder)
            await live_a_little(store, round_)
            await store.aclose()

    anyio.run(live)
    return folder / "broker.db"


@pytest.fixture
def database(lived: Path, tmp_path: Path) -> Path:
    shutil.copy(lived, tmp_path / "broker.db")
    return tmp_path / "broker.db"


@contextmanager
def by_hand(database: Path) -> Generator[sqlite3.Connection]:
    """What somebody with the file and a shell can do."""
    with closing(sqlite3.connect(database, isolation_level=None)) as db:
        yield db


def fault_after(database: Path, *statements: str, anchor: Path | None = None) -> Fault:
    with by_hand(database) as db:
        for statement in statements:
            assert db.execute(statement).rowcount != 0, "nothing was changed"
    found = verify(database, anchor)
    assert not found.ok
    assert found.fault is not None
    assert second_verifier.judge(database) is not None, "the page alone is enough to find it"
    with parts_here():
        for processes in (2, 7):
            assert verify(database, anchor, processes=processes).fault == found.fault
    return found.fault


class Here(nullcontext[None]):
    """A part walked in this process instead of another: what is tested is how parts are put together."""

    def __init__(self, path: Path, low: int, high: int) -> None:
        super().__init__()
        self.stdout = BytesIO(join.walk_part(path, low, high))

    def wait(self) -> int:
        return 0

    def kill(self) -> None: ...


@contextmanager
def parts_here() -> Generator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(join, "_start", Here)
        yield


def place(database: Path, which: str) -> tuple[str, int]:
    with by_hand(database) as db:
        return db.execute(f"select chain, seq from entry where {which}").fetchone()


# The records of two succeeded plain calls: the intent of the first says all of it, that of the other names the first,
# as is usual, and is judged by its text. The intents of the first chain: FULL; HALF, of another
# caller, names it for the tool alone; SHORT for both.
ENTRY = "id = 4"
TOLD, NAMING, FAILED = "id = 1", "id = 3", "id = 4"
ITSELF = "id = (select min(id) from invocation where agent = 'dog')"  # its intent says itself who calls
HELD = "id = (select min(id) from invocation where held = 1)"
FULL, HALF, SHORT = 2, 3, 4
HOLD = "call_id = (select call_id from hold order by call_id limit 1)"


def columns(table: str) -> list[str]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        MIGRATIONS.apply(db)
        return [row[1] for row in db.execute(f"pragma table_info({table})")]


def changed(table: str, column: str, where: str) -> str:
    """Change the value a little, whatever its type."""
    change = f"""case typeof("{column}") when 'integer' then "{column}" + 1000
        when 'blob' then cast("{column}" || 'x' as blob)
        else case when json_valid("{column}") and "{column}" like '[%' then '["x"]'
                  when json_valid("{column}") then '{{"x":1}}' else "{column}" || 'x' end end"""
    return f'update {table} set "{column}" = {change} where {where}'


def test_what_the_store_wrote_verifies(database: Path) -> None:
    assert second_verifier.judge(database) is None
    alone = verify(database, processes=1)
    assert verify(database, processes=3) == alone
    with parts_here():
        for processes in range(2, 40):
            assert verify(database, processes=processes) == alone
    found = verify(database)
    assert found.fault is None
    assert (found.ok, found.chains, found.records, found.erased) == (True, 2, 18, 0)
    assert found.limits


@pytest.mark.anyio
async def test_who_follows_a_ledger_whose_named_entry_is_gone_is_told_so(database: Path) -> None:
    with by_hand(database) as db:
        rows = db.execute(
            "select chain, json_extract(body, '$.as[0]') from entry where body like '%\"as\":%'"
        ).fetchall()
        chain, named = next(row for row in rows if row[1])
        db.execute("delete from entry where chain = ? and seq = ?", (chain, named))
    store = await open_store(database.parent)
    try:
        with pytest.raises(RecordUnavailable, match="was changed"):
            await store.entries_after(0, (), 1000)
    finally:
        await store.aclose()


def widen(db: sqlite3.Connection) -> None:
    """As a database was before `caller` and `called`."""
    from broker.stores.sqlite import schema

    wide = next(one for one in schema._TABLES if one.startswith("create table invocation"))  # pyright: ignore[reportPrivateUsage]
    db.execute("create table kept as select * from record")
    db.execute("pragma legacy_alter_table = on")
    for statement in ("drop view record", *(f"drop table {name}" for name in ("invocation", "caller", "called")), wide):
        db.execute(statement)
    names = ", ".join(f'"{row[1]}"' for row in db.execute("pragma table_info(invocation)"))
    db.execute(f"insert into invocation ({names}) select {names} from kept")
    db.execute("drop table kept")
    db.execute("delete from _sqlite_migrations where name = 'common_columns'")


def test_an_older_database_becomes_what_a_newer_one_is(database: Path) -> None:
    """Each record has the columns it had, and all of it verifies."""
    before = verify(database)
    with by_hand(database) as db:
        was = [
            row for table in ("record", "hold", "payload") for row in db.execute(f"select * from {table} order by 1")
        ]
        schema = db.execute("select type, name, sql from sqlite_schema order by 1, 2").fetchall()
        widen(db)
    assert verify(database) == before
    with parts_here():
        assert verify(database, processes=5) == before
    migrate(database, MIGRATIONS)
    with by_hand(database) as db:
        rows = [
            row for table in ("record", "hold", "payload") for row in db.execute(f"select * from {table} order by 1")
        ]
        assert db.execute("select type, name, sql from sqlite_schema order by 1, 2").fetchall() == schema
        assert db.execute("pragma foreign_key_check").fetchall() == []
    assert rows == was
    assert verify(database) == before


@pytest.mark.parametrize("column", ["face", "principal_key", "definition", "record", "agent", "trace_id"])
def test_a_changed_record_of_an_older_database_is_found(database: Path, column: str) -> None:
    with by_hand(database) as db:
        widen(db)
        db.execute(f"update invocation set {column} = {column} || 'x' where {NAMING}")
    found = verify(database)
    assert found.fault is not None
    assert f"`{column}`" in found.fault.what


@pytest.mark.anyio
async def test_it_verifies_while_a_broker_writes(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    try:
        await live_a_little(store, 0)
        await store.admit(intent())
        found = verify(tmp_path / "broker.db")
        assert found.fault is None
        assert found.records == 10
    finally:
        await store.aclose()


@pytest.mark.parametrize("column", columns("entry"))
def test_a_changed_entry_is_found_where_it_is(database: Path, column: str) -> None:
    chain, seq = place(database, ENTRY)
    fault = fault_after(database, changed("entry", column, ENTRY))
    if column == "chain":
        assert fault.seq == 1
        return
    assert (fault.chain, fault.seq) == (chain, seq)


@pytest.mark.parametrize("record", [TOLD, NAMING, FAILED, ITSELF])
@pytest.mark.parametrize("column", columns("invocation"))
def test_a_changed_record_is_found(database: Path, column: str, record: str) -> None:
    assert fault_after(database, changed("invocation", column, record)).chain


@pytest.mark.parametrize("column", ["chain", "kind", "call_id", "body"])
def test_an_entry_that_is_no_text_is_found_where_it_is(database: Path, column: str) -> None:
    chain, seq = place(database, ENTRY)
    fault = fault_after(database, f"update entry set {column} = {column} || cast(x'ff' as text) where {ENTRY}")
    assert column == "chain" or (fault.chain, fault.seq) == (chain, seq)


@pytest.mark.parametrize("record", [TOLD, NAMING, FAILED, HELD])
@pytest.mark.parametrize("column", ["call_id", "agent", "trace_id", "quotas", "laps_us", "state", "message"])
def test_a_record_that_is_no_text_is_found(database: Path, column: str, record: str) -> None:
    no_keys = "pragma foreign_keys = off"
    assert fault_after(database, no_keys, f"update invocation set {column} = cast(x'ff' as text) where {record}").chain


def test_a_usual_call_is_judged_by_its_text_alone(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[str] = []
    judge = Records.judge

    def noted(records: Records, call: OpenCall, record: Row | None = None) -> None:
        judged.append(call.says["call_id"])
        judge(records, call, record)

    monkeypatch.setattr(Records, "judge", noted)
    assert verify(database, processes=1).ok
    with by_hand(database) as db:
        told, naming, failed, itself = (
            db.execute(f"select call_id from invocation where {which}").fetchone()[0]
            for which in (TOLD, NAMING, FAILED, ITSELF)
        )
    assert told in judged
    assert not {naming, failed, itself} & {*judged}


@pytest.mark.parametrize(
    "change",
    [
        "tool = tool || char(0) || 'x'",  # what comes after a NUL is not overlooked
        "credential_id = json_quote(credential_id)",
        """agent = agent || '","arguments_digest":"x'""",
        """tenant = tenant || '","trace_id":"' || trace_id""",
        "tenant = tenant || char(92)",
        "quotas = quotas || char(92)",
        """trace_id = trace_id || '","user":"'""",
        """rule = rule || '","tenant":"' || tenant""",  # one value that reads like two
        "quotas = replace(quotas, ':50', ':50.5')",
        "quotas = quotas || char(10)||'[]'",
        "laps_us = laps_us || laps_us",
        "laps_us = replace(laps_us, '900', '901')",
        "laps_us = ''",
        "quotas = '[]'",
        "code = 'x', message = char(10)",
        """quotas = quotas || ',"request_id":"7"'""",
        """request_id = request_id || '","trace_id":"' || trace_id""",
        """laps_us = laps_us || ',"result_bytes":2'""",
        "laps_us = '{\"dispatch\":900}'",
        "laps_us = replace(laps_us, 'resolve', 'resolved')",
        "held = 1",
        "result_bytes = 0",
        "result_digest = ''",
        "backend_status = ''",
        "message = 'x'",
        "code = 'x'",
        "stage = 'dispatch'",
    ],
)
@pytest.mark.parametrize("record", [NAMING, ITSELF])
def test_no_text_of_a_record_passes_for_another(database: Path, change: str, record: str) -> None:
    fault = fault_after(database, f"update invocation set {change} where {record}")
    assert change.split(" =", maxsplit=1)[0] in fault.what


@pytest.mark.parametrize(
    ("record", "change"),
    [
        (NAMING, """quotas = quotas || ',"request_id":"7"', request_id = ''"""),
        (NAMING, """request_id = '7","trace_id":"' || trace_id, trace_id = ''"""),
        (ITSELF, """tenant = tenant || '","trace_id":"' || trace_id, trace_id = ''"""),
        (ITSELF, """trace_id = trace_id || '","user":"' || "user", "user" = ''"""),
        (ITSELF, """quotas = quotas || ',"request_id":"' || request_id || '"', request_id = ''"""),
        (FAILED, """backend_status = backend_status || '","code":"' || code, code = ''"""),
        (FAILED, """laps_us = laps_us || ',"message":"' || message || '"', message = ''"""),
        (
            FAILED,
            """message = message || '","result_bytes":2,"result_digest":"' || result_digest, result_digest = '',
            result_bytes = 0""",
        ),
    ],
)
def test_no_two_columns_pass_for_others(database: Path, record: str, change: str) -> None:
    """What the one has too much the other lacks."""
    fault_after(database, f"update invocation set {change} where {record}")


SHARED = [(table, column) for table in ("caller", "called") for column in columns(table)]


@pytest.mark.parametrize("change", ["{0} || char(0)", "{0} || 'x'", "json_quote({0})", "''", "cast(x'ff' as text)"])
@pytest.mark.parametrize(("table", "column"), [(table, column) for table, column in SHARED if column != "id"])
def test_what_records_have_in_common_is_held_against_all_of_them(
    database: Path, table: str, column: str, change: str
) -> None:
    """The first record that names the row tells."""
    chain, _ = place(database, "id = 1")
    fault = fault_after(database, f"update {table} set {column} = {change.format(column)} where id = 1")
    assert (fault.chain, f"`{column}`" in fault.what) == (chain, True)


@pytest.mark.parametrize("table", ["caller", "called"])
def test_what_records_have_in_common_is_neither_deleted_nor_inserted(database: Path, table: str) -> None:
    others = ", ".join("'x'" for name, column in SHARED if name == table and column != "id")
    assert "belongs to no record" in fault_after(database, f"insert into {table} values (1000, {others})").what
    with by_hand(database) as db:
        db.execute(f"delete from {table} where id = 1000")
    assert verify(database).ok
    fault_after(database, f"delete from {table} where id = 1")


@pytest.mark.parametrize(
    "change", [("t.backend", "'x' as backend"), ("join called t on", "join called t on i.id > 1 and")]
)
def test_what_shows_all_columns_of_a_call_is_what_it_was(database: Path, change: tuple[str, str]) -> None:
    """Statistics are made of the view, and who has the file and a shell reads it."""
    with by_hand(database) as db:
        (view,) = db.execute("select sql from sqlite_schema where name = 'record'").fetchone()
    assert "`record`" in fault_after(database, "drop view record", view.replace(*change)).what


@pytest.mark.parametrize("shown", ["where agent <> 'cat'", None])
def test_a_record_that_its_index_hides_is_found(database: Path, shown: str | None) -> None:
    """It would be there, and no question by its agent would find it."""
    known = "create index invocation_agent on invocation (agent)"
    other = f"{known} {shown}" if shown else known.replace("(agent)", "(replace(agent, 'cat', 'dog'))")
    with by_hand(database) as db:
        for sql in (other, known):
            db.execute("pragma writable_schema = on")
            db.execute("update sqlite_schema set sql = ? where name = 'invocation_agent'", (sql,))
            db.execute("pragma writable_schema = reset")
            if sql == other:
                db.execute("reindex")
        hidden = "select count(*) from invocation indexed by invocation_agent where agent = 'cat'"
        assert db.execute(hidden).fetchone() == (0,)
    assert any("--indices" in limit for limit in verify(database).limits)
    fault = verify(database, indices=True).fault
    assert fault is not None
    assert "index" in fault.what


@pytest.mark.parametrize("column", columns("hold"))
def test_a_changed_hold_is_found(database: Path, column: str) -> None:
    fault_after(database, "pragma foreign_keys = off", changed("hold", column, HOLD))


@pytest.mark.parametrize(
    "statement",
    [
        "delete from entry where id = 4",
        "delete from invocation where id = 2",
        "delete from invocation where id = (select max(id) from invocation)",
        f"delete from hold where {HOLD}",
        "update payload set body = cast('{\"amount\":1}' as blob) where part = 'kept'",
        """update entry set body = case id when 3 then (select body from entry where id = 5)
            else (select body from entry where id = 3) end where id in (3, 5)""",
        "update entry set id = case id when 3 then -3 when 4 then -4 end where id in (3, 4)",
        """insert into entry (chain, seq, at_ms, kind, call_id, body, prev, hash)
            select chain, seq + 1, at_ms, 'note', '', '{}', hash, hash from entry order by id desc limit 1""",
        """insert into hold (call_id, act, reason, expires_at_ms, scopes, "groups", persons, charges)
            select call_id, 'x', '', 0, '[]', '[]', '[]', '[]' from invocation where id = 1""",
    ],
)
def test_rows_deleted_swapped_or_inserted_are_found(database: Path, statement: str) -> None:
    fault_after(database, statement)


ANY_ID = [-(1 << 63), -5, 0, 1 << 62, (1 << 63) - 1]


@pytest.mark.parametrize("id_", ANY_ID)
def test_an_inserted_record_is_found_whatever_its_id(database: Path, id_: int) -> None:
    names = ", ".join(f'"{name}"' for name in columns("invocation") if name not in ("id", "call_id"))
    inserted = f"insert into invocation (id, call_id, {names}) select {id_}, 'forged', {names} from invocation"
    assert "inserted" in fault_after(database, f"{inserted} where id = 1").what


@pytest.mark.parametrize("id_", ANY_ID)
def test_an_inserted_entry_is_found_whatever_its_id(database: Path, id_: int) -> None:
    inserted = f"""insert into entry (id, chain, seq, at_ms, kind, call_id, body, prev, hash)
        select {id_}, chain, 999, at_ms, 'review', call_id, '{{}}', prev, hash from entry where {ENTRY}"""
    chain, _ = place(database, ENTRY)
    fault = fault_after(database, inserted)
    assert (fault.chain, "999" in fault.what) == (chain, True)


def test_a_record_is_inserted_where_no_call_is(tmp_path: Path) -> None:
    async def live() -> None:
        store = await open_store(tmp_path)
        await store.note("reload", {"version": "sha256:x"})
        await store.aclose()

    anyio.run(live)
    names = [f'"{name}"' for name in columns("invocation") if name != "id"]
    texts = ", ".join(f"'{number}'" for number in range(len(names)))
    inserted = f"insert into invocation (id, {', '.join(names)}) values ({ANY_ID[0]}, {texts})"
    fault_after(tmp_path / "broker.db", inserted)


def test_kept_arguments_that_vanish_without_an_entry_are_missed(database: Path) -> None:
    statement = "delete from payload where part = 'kept' and call_id = (select call_id from invocation limit 1)"
    assert "no entry says so" in fault_after(database, statement).what


def drop_chain(number: int) -> Callable[[sqlite3.Connection], Any]:
    def drop(db: sqlite3.Connection) -> None:
        (chain,) = db.execute(
            f"select chain from entry where kind = 'chain' order by id limit 1 offset {number}"
        ).fetchone()
        db.execute("pragma foreign_keys = off")
        mine = "select call_id from entry where chain = ? and kind in ('intent', 'held', 'denied')"
        for table in ("hold", "payload", "invocation"):
            db.execute(f"delete from {table} where call_id in ({mine})", (chain,))
        db.execute("delete from entry where chain = ?", (chain,))

    return drop


def cut_tail(db: sqlite3.Connection) -> None:
    """Remove the newest chain's last entries, and with them the record they made."""
    (last,) = db.execute("select max(id) from entry where kind = 'held'").fetchone()
    db.execute("pragma foreign_keys = off")
    for table in ("hold", "payload", "invocation"):
        db.execute(f"delete from {table} where call_id = (select call_id from entry where id = ?)", (last,))
    db.execute("delete from entry where id >= ?", (last,))


def rewrite(db: sqlite3.Connection) -> None:
    """Change an early entry and hash the whole chain anew."""
    (chain,) = db.execute("select chain from entry where kind = 'reload' order by id desc limit 1").fetchone()
    db.execute("update entry set body = '{\"version\":\"forged\"}' where kind = 'reload' and chain = ?", (chain,))
    rehash(db, chain)


def rehash(db: sqlite3.Connection, chain: str) -> None:
    """Of a whole chain, as the page in ledger.py describes it."""
    prev = b""
    for id_, seq, at_ms, kind, call_id, body in db.execute(
        "select id, seq, at_ms, kind, call_id, body from entry where chain = ? order by seq", (chain,)
    ).fetchall():
        lines = ["broker.entry.1", chain, str(seq), str(at_ms), kind, call_id, prev.hex(), body]
        digest = hashlib.sha256("\n".join(lines).encode()).digest()
        db.execute("update entry set prev = ?, hash = ? where id = ?", (prev, digest, id_))
        prev = digest


@pytest.mark.parametrize("named", [[HALF, FULL], [FULL, HALF], [0, FULL], [FULL, 0], [0, 0], [SHORT, FULL], [5, FULL],
    [99, FULL], [FULL, 99], [1, FULL], [-1, FULL], [FULL], [], FULL, None, ["2", FULL], [FULL, FULL, FULL], [[], {}]],
)  # fmt: skip
def test_an_intent_that_names_what_it_should_not_is_found(database: Path, named: Any) -> None:
    """Another caller, one that says nothing itself, itself, a later one, none, no intent; in a chain that is whole."""
    (chain, _), last = place(database, "id = 1"), place(database, "kind = 'outcome' and id = 9")
    with by_hand(database) as db:
        (body,) = db.execute("select body from entry where id = ?", (SHORT,)).fetchone()
        assert json.loads(body)["as"] == [FULL, FULL]
        said = {**json.loads(body), "as": named}
        db.execute("update entry set body = ? where id = ?", (json.dumps(said), SHORT))
        rehash(db, chain)
    fault = fault_after(database, "update entry set at_ms = at_ms where id = 1")
    assert (fault.chain, fault.seq) in ((chain, SHORT), last)


def test_whose_naming_another_changes_with_it(database: Path) -> None:
    """The record that names it is found as well, when the one that says it all was made to agree with its own."""
    chain, _ = place(database, "id = 1")
    with by_hand(database) as db:
        db.execute("update entry set body = replace(body, 'jti-1', 'jti-2') where id = ?", (FULL,))
        db.execute("update invocation set credential_id = 'jti-2' where id = 1")
        rehash(db, chain)
    fault = fault_after(database, "update entry set at_ms = at_ms where id = 1")
    assert (fault.chain, fault.seq) == (chain, 9)
    assert "`credential_id`" in fault.what


def test_entries_that_say_everything_themselves_verify(database: Path) -> None:
    """As brokers wrote them before intents named others."""
    with by_hand(database) as db:
        entries = """select e.id, e.chain, e.kind, e.body, e.call_id, i.at_ms, i.arguments_digest
            from entry e join invocation i using (call_id)"""
        for id_, chain, kind, body, call_id, at_ms, digest in db.execute(entries).fetchall():
            said = whole(db, chain, json.loads(body))
            if kind in ("intent", "denied", "held"):
                empty = {"held": 0, "code": "", "stage": "", "message": "", "call_id": call_id, "at_ms": at_ms}
                said["set"] = {**empty, "changed_at_ms": at_ms, **said["set"]}
                said["kept"] = digest
            if kind == "outcome":
                said["set"] = {"code": "", "message": "", "backend_status": "", **said["set"]}
            db.execute("update entry set body = ? where id = ?", (json.dumps(said, sort_keys=True), id_))
        forge_all(db)
    assert verify(database).fault is None
    assert second_verifier.judge(database) is None


def test_a_chain_removed_whole_is_missed_by_a_later_one(database: Path) -> None:
    first = place(database, "id = 1")
    with by_hand(database) as db:
        drop_chain(0)(db)
    fault = verify(database).fault
    assert fault is not None
    assert (fault.chain, fault.seq) == first


@pytest.mark.parametrize("tamper", [drop_chain(1), cut_tail, rewrite])
def test_what_the_file_alone_cannot_show_an_anchor_does(
    database: Path, tmp_path: Path, tamper: Callable[[sqlite3.Connection], Any]
) -> None:
    anchor = tmp_path / "anchor.jsonl"
    assert write_anchor(verify(database), anchor) == 2
    untouched = verify(database, anchor)
    assert (untouched.fault, untouched.anchored) == (None, 2)
    newest = place(database, "id = (select max(id) from entry)")
    with by_hand(database) as db:
        tamper(db)
    assert verify(database).ok, "nothing in the file vouches for its newest end"
    fault = verify(database, anchor).fault
    assert fault is not None
    assert (fault.chain, fault.seq) == newest


def test_an_old_copy_put_back_is_found_by_the_anchor(lived: Path, tmp_path: Path) -> None:
    anchor, database = tmp_path / "anchor.jsonl", tmp_path / "broker.db"
    shutil.copy(lived, database)
    shutil.copy(lived.with_name("broker.db.key"), tmp_path / "broker.db.key")

    async def go_on() -> None:
        store = await open_store(tmp_path)
        await live_a_little(store, 3)
        await store.aclose()

    anyio.run(go_on)
    write_anchor(verify(database), anchor)
    assert verify(database, anchor).ok
    shutil.copy(lived, database)
    fault = verify(database, anchor).fault
    assert fault is not None
    assert "older copy" in fault.what


def test_a_whole_file_written_anew_is_found_by_the_anchor(database: Path, tmp_path: Path) -> None:
    """The same calls in another history: a new database by the broker's own code, sound in itself."""
    anchor = tmp_path / "anchor.jsonl"
    write_anchor(verify(database), anchor)
    first = place(database, "id = (select max(id) from entry where chain = (select min(chain) from entry))")

    async def anew() -> None:
        for round_ in range(2):
            store = await open_store(tmp_path / "anew")
            await live_a_little(store, round_)
            await store.aclose()

    (tmp_path / "anew").mkdir()
    anyio.run(anew)
    shutil.copy(tmp_path / "anew" / "broker.db", database)
    assert verify(database).ok, "nothing in the file says that it was another"
    fault = verify(database, anchor).fault
    assert fault is not None
    assert (fault.chain, fault.seq) == first


def test_a_chain_rewritten_from_a_new_genesis_is_found_where_it_was_anchored(database: Path, tmp_path: Path) -> None:
    """Each chain begins anew with a forged first entry, and all hashes are made again, also those seen by others."""
    anchor = tmp_path / "anchor.jsonl"
    write_anchor(verify(database), anchor)
    newest = place(database, "id = (select max(id) from entry)")
    with by_hand(database) as db:
        forge_all(db)
    assert verify(database).ok
    fault = verify(database, anchor).fault
    assert fault is not None
    ends = [json.loads(line) for line in anchor.read_text().splitlines()]
    assert (fault.chain, fault.seq) == (ends[0]["chain"], ends[0]["seq"]) != newest


def forge_all(db: sqlite3.Connection) -> None:
    """Rewrite each chain from its first entry on: another host wrote it, and later chains saw that."""
    heads: dict[str, tuple[int, str]] = {}
    for id_, chain, seq, at_ms, kind, call_id, body, _ in db.execute(
        "select id, chain, seq, at_ms, kind, call_id, body, prev from entry order by id"
    ).fetchall():
        said = json.loads(body)
        if kind == "chain":
            said["host"] = "elsewhere"
        for seen in said.get("seen", ()):
            seen["hash"] = heads[seen["chain"]][1]
        body = json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=False)  # noqa: PLW2901
        prev = heads[chain][1] if seq > 1 else ""
        lines = ["broker.entry.1", chain, str(seq), str(at_ms), kind, call_id, prev, body]
        digest = hashlib.sha256("\n".join(lines).encode())
        db.execute(
            "update entry set body = ?, prev = ?, hash = ? where id = ?",
            (body, bytes.fromhex(prev), digest.digest(), id_),
        )
        heads[chain] = seq, digest.hexdigest()


def test_an_anchor_is_json_lines_and_a_bad_one_is_said(database: Path, tmp_path: Path) -> None:
    anchor = tmp_path / "anchor.jsonl"
    write_anchor(verify(database), anchor)
    assert {tuple(json.loads(line)) for line in anchor.read_text().splitlines()} == {("chain", "seq", "hash")}
    anchor.write_text('{"chain": 1}\n')
    fault = verify(database, anchor).fault
    assert fault is not None
    assert "anchor.jsonl:1" in fault.what
    with pytest.raises(ValueError, match="verify"):
        write_anchor(verify(database, anchor), anchor)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\n \n",
        b"root:x:0:0",
        b"[]",
        b"{}",
        b"null",
        b"[" * 100_000,
        b"\xff\xfe\x00",
        b'{"chain": "a", "seq": 1e30, "hash": ""}',
        b'{"chain": "a", "seq": Infinity, "hash": ""}',
        b'{"chain": "a", "seq": ' + b"9" * 5000 + b', "hash": ""}',
        b'{"chain": "a", "seq": true, "hash": ""}',
        b'{"checkpoint": 1, "at_ms": 9999999999999999999, "chains": 1, "heads": [], "rest": "", "key": ""}',
        b'{"checkpoint": 1, "at_ms": 1, "chains": 1, "heads": [], "rest": "", "key": "AA==", "signature": "AA=="}',
        b'{"checkpoint": 1, "at_ms": 1, "chains": 1, "heads": 5, "rest": "", "key": "AA==", "signature": "AA=="}',
    ],
)
def test_what_is_no_anchor_proves_nothing_and_is_not_taken_for_a_fault_of_the_records(
    database: Path, tmp_path: Path, text: bytes
) -> None:
    """An empty one above all: it would agree with every database."""
    anchor = tmp_path / "anchor.jsonl"
    anchor.write_bytes(text)
    for given in (anchor, tmp_path):
        found = verify(database, given)
        assert not found.ok
        assert found.fault is not None
        assert (found.fault.of_anchor, found.fault.chain) == (True, "")
        assert "\n" not in found.fault.what
    (tmp_path / "empty").mkdir()
    for missing in (tmp_path / "empty", tmp_path / "nowhere"):
        fault = verify(database, missing).fault
        assert fault is not None
        assert fault.of_anchor
    write_anchor(verify(database), anchor)
    assert verify(database, anchor).ok


def test_what_is_no_database_is_a_fault_and_no_exception(tmp_path: Path) -> None:
    assert not verify(tmp_path / "missing.db").ok
    (tmp_path / "text.db").write_text("not a database, but long enough to be looked at " * 10)
    assert not verify(tmp_path / "text.db").ok
