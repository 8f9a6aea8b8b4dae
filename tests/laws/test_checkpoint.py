"""Checkpoints: signed, outside of the database, and enough to find what the file alone cannot show."""

from __future__ import annotations

import base64
import json
import shutil
import sqlite3
import stat
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any

import anyio
import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broker.checkpoint import KEY_FILE, PUBLIC_FILE, Checkpointer, signer
from broker.errors import SettingsError
from broker.ports import Store
from broker.settings import Checkpoints
from broker.verifier import Verification, verify
from tests import second_verifier
from tests.laws.test_ledger import cut_tail, drop_chain, live_a_little, rewrite
from tests.records import HandClock, intent, open_store

FILE = "broker.checkpoints.jsonl"
SEED = base64.b64encode(bytes(range(32))).decode()


@asynccontextmanager
async def checkpointed(folder: Path, store: Store, **keys: Any) -> AsyncGenerator[Checkpointer]:
    settings = Checkpoints().model_copy(update={"every_s": 0.02, **keys})
    checkpointer = Checkpointer(settings, folder, store, HandClock())
    async with checkpointer.running():
        yield checkpointer
    await checkpointer.aclose()


async def live(folder: Path, rounds: int = 2) -> None:
    for round_ in range(rounds):
        store = await open_store(folder)
        async with checkpointed(folder, store):
            await live_a_little(store, round_)


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lived")
    anyio.run(live, folder)
    return folder


@pytest.fixture
def folder(lived: Path, tmp_path: Path) -> Path:
    shutil.copytree(lived, tmp_path / "it")
    return tmp_path / "it"


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / FILE).read_text().splitlines()]


def public(folder: Path) -> str:
    return (folder / PUBLIC_FILE).read_text().strip()


def judged(folder: Path, key: str = "") -> Verification:
    return verify(folder / "broker.db", folder / FILE, key=key or public(folder))


def test_each_end_of_a_broker_is_vouched_for_and_verifies(folder: Path) -> None:
    found = judged(folder)
    assert found.fault is None
    assert found.checkpoints == len(lines(folder)) >= 2
    assert found.signed_by == public(folder)
    last = {head["chain"]: head["seq"] for head in lines(folder)[-1]["heads"]}
    assert last == {head.chain: head.seq for head in found.heads}, "the last one names where every chain ended"
    assert second_verifier.judge(folder / "broker.db", folder / FILE, public(folder)) is None


def test_the_key_is_made_once_and_nobody_else_can_read_it(folder: Path) -> None:
    assert stat.S_IMODE((folder / KEY_FILE).stat().st_mode) == 0o600
    assert {line["key"] for line in lines(folder)} == {public(folder)}
    assert (folder / KEY_FILE).read_text() not in (folder / FILE).read_text()


def resigned(folder: Path) -> None:
    """Whoever has the file but not the key."""
    forged = signer(SEED, folder)
    out = [{**line, "key": forged.public} for line in lines(folder)]
    (folder / FILE).write_text("".join(json.dumps(line) + "\n" for line in out))


@pytest.mark.parametrize("field", ["at_ms", "chains", "rest", "heads", "key", "signature"])
def test_a_changed_checkpoint_is_refused_and_named(folder: Path, field: str) -> None:
    changed = lines(folder)
    value: Any = changed[1][field]
    forged: Any = "A" * len(value) if isinstance(value, str) else value + 1 if isinstance(value, int) else value[:-1]
    changed[1][field] = forged
    (folder / FILE).write_text("".join(json.dumps(line) + "\n" for line in changed))
    fault = judged(folder).fault
    assert fault is not None
    assert f"{FILE}:2" in fault.what


def test_checkpoints_of_another_key_are_refused(folder: Path) -> None:
    other = signer(SEED, folder).public
    fault = judged(folder, other).fault
    assert fault is not None
    assert "another key" in fault.what
    resigned(folder)
    fault = judged(folder, other).fault
    assert fault is not None
    assert "signature" in fault.what


def test_without_a_known_key_that_is_said(folder: Path) -> None:
    found = verify(folder / "broker.db", folder / FILE)
    assert found.ok
    assert any("--key" in limit for limit in found.limits)
    assert not any("--key" in limit for limit in judged(folder).limits)


@pytest.mark.parametrize("tamper", [drop_chain(0), drop_chain(1), cut_tail, rewrite])
def test_what_the_file_alone_cannot_show_a_checkpoint_does(
    folder: Path, tamper: Callable[[sqlite3.Connection], Any]
) -> None:
    with closing(sqlite3.connect(folder / "broker.db", isolation_level=None)) as db:
        tamper(db)
    fault = judged(folder).fault
    assert fault is not None
    assert second_verifier.judge(folder / "broker.db", folder / FILE) == (fault.chain, fault.seq)


def test_an_old_copy_put_back_is_found(lived: Path, folder: Path) -> None:
    async def go_on() -> None:
        store = await open_store(folder)
        async with checkpointed(folder, store):
            await store.admit(intent())

    anyio.run(go_on)
    assert judged(folder).ok
    shutil.copy(lived / "broker.db", folder / "broker.db")
    fault = judged(folder).fault
    assert fault is not None
    assert "older copy" in fault.what


def test_chains_that_ended_long_ago_stand_in_one_digest(tmp_path: Path) -> None:
    anyio.run(live, tmp_path, 19)
    found = judged(tmp_path)
    assert found.fault is None
    assert len(lines(tmp_path)[-1]["heads"]) == 16
    assert second_verifier.judge(tmp_path / "broker.db", tmp_path / FILE) is None
    newest = lines(tmp_path)[-1]
    newest["rest"] = "0" * 64
    heads = [f"{head['chain']} {head['seq']} {head['hash']}" for head in newest["heads"]]
    text = "\n".join(["broker.checkpoint.1", str(newest["at_ms"]), str(newest["chains"]), newest["rest"], *heads])
    key = Ed25519PrivateKey.from_private_bytes(base64.b64decode(SEED))
    newest |= {"key": signer(SEED, tmp_path).public, "signature": base64.b64encode(key.sign(text.encode())).decode()}
    (tmp_path / FILE).write_text(json.dumps(newest))
    fault = verify(tmp_path / "broker.db", tmp_path / FILE).fault
    assert fault is not None
    assert "removed or cut" in fault.what


def test_a_key_by_reference_is_used_and_a_bad_one_is_not_repeated(tmp_path: Path) -> None:
    assert signer(SEED, tmp_path).public == signer(SEED, tmp_path).public
    assert not (tmp_path / KEY_FILE).exists()
    for bad in ("not-a-key-4711", base64.b64encode(b"short-4711").decode(), "-----BEGIN PRIVATE KEY-----\n4711"):
        with pytest.raises(SettingsError) as caught:
            signer(bad, tmp_path)
        assert "4711" not in str(caught.value)


# ------------------------------------------------------------------------------------------------- when things fail


async def kinds(store: Store, folder: Path) -> list[Any]:
    del store
    with closing(sqlite3.connect(folder / "broker.db")) as db:
        rows = db.execute("select body from entry where kind = 'checkpoint' order by id").fetchall()
        return [(body["to"], body["works"]) for body in map(orjson.loads, (row[0] for row in rows))]


async def until(condition: Callable[[], Any]) -> None:
    with anyio.fail_after(10):
        while not await condition():
            await anyio.sleep(0.01)


@pytest.mark.anyio
async def test_where_they_cannot_be_kept_calls_go_on_and_it_is_recorded_once(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    async with checkpointed(tmp_path, store, path="away/checkpoints.jsonl"):

        async def noticed() -> bool:
            await store.admit(intent())
            return await kinds(store, tmp_path) == [("file", False)]

        await until(noticed)
        (tmp_path / "away").mkdir()

        async def healed() -> bool:
            await store.admit(intent())
            return await kinds(store, tmp_path) == [("file", False), ("file", True)]

        await until(healed)
    assert verify(tmp_path / "broker.db", tmp_path / "away" / "checkpoints.jsonl").ok


@pytest.mark.anyio
async def test_a_folder_gets_a_file_a_day(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    store = await open_store(tmp_path)
    async with checkpointed(tmp_path, store, path="elsewhere"):
        await store.admit(intent())
    (file,) = (tmp_path / "elsewhere").iterdir()
    assert file.name == "checkpoints-2026-09-21.jsonl"
    found = verify(tmp_path / "broker.db", tmp_path / "elsewhere")
    assert (found.fault, found.checkpoints > 0) == (None, True)


@pytest.mark.anyio
async def test_a_webhook_gets_each_and_its_failing_is_recorded_and_holds_up_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.checkpoint.RETRY_AFTER_S", (0.01, 0.01))
    monkeypatch.setattr("broker.checkpoint.POST_S", 0.2)
    taken: list[bytes] = []
    answers = iter([b"500 No", None, b"503 No"])  # None: takes the request and says nothing

    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            got = b""
            with suppress(anyio.EndOfStream):
                while not got.endswith(b"}\n"):
                    got += await stream.receive()
            answer = next(answers, b"204 No Content")
            if answer is None:
                await anyio.sleep(1)
                return
            if answer.startswith(b"204") and got.endswith(b"}\n"):
                taken.append(got.partition(b"\r\n\r\n")[2])
            await stream.send(b"HTTP/1.1 " + answer + b"\r\nContent-Length: 0\r\n\r\n")

    store = await open_store(tmp_path)
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        async with checkpointed(tmp_path, store, webhook=f"http://127.0.0.1:{port}/hook"):

            async def healed() -> bool:
                await store.admit(intent())
                return [kind for kind in await kinds(store, tmp_path) if kind[0] == "webhook"] == [
                    ("webhook", False),
                    ("webhook", True),
                ]

            await until(healed)
        tasks.cancel_scope.cancel()
    (tmp_path / "posted.jsonl").write_bytes(b"".join(taken))
    found = verify(tmp_path / "broker.db", tmp_path / "posted.jsonl", key=public(tmp_path))
    assert (found.fault, found.checkpoints) == (None, len(taken))
    assert taken[-1] == (tmp_path / FILE).read_bytes().splitlines(keepends=True)[-1], "the last one, at shutdown, too"


@pytest.mark.parametrize("url", ["http://example.com/x", "ftp://example.com", "example.com"])
def test_a_webhook_is_https_or_on_loopback(tmp_path: Path, url: str) -> None:
    with pytest.raises(SettingsError, match="webhook"):
        Checkpointer(Checkpoints(webhook=url), tmp_path, store=None, clock=HandClock())  # type: ignore[arg-type]
