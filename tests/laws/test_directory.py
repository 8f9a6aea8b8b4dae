"""The directory: one winner for each code and refresh token, one meaning for each name, no memory beyond its time."""

from __future__ import annotations

import stat
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest

from broker.authserver import keys
from broker.errors import Conflict, RecordUnavailable
from broker.model.directory import Account, ApiKey, BrowserSession, Client, Code, Grant, RefreshToken
from broker.stores.sqlite import directory_rows
from broker.stores.sqlite.directory import SqliteDirectory
from tests.issuing import START_MS, MovableClock

T = TypeVar("T")
GRANT = Grant("g1", "desk", "ann", frozenset({"a"}), ("http://127.0.0.1:8750/mcp",))
CODE = Code("h", GRANT, "http://127.0.0.1/cb", "challenge", START_MS + 60_000)
REFRESH = RefreshToken("r1", GRANT, START_MS + 1_000_000)


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


@pytest.fixture
def directory(tmp_path: Path, clock: MovableClock) -> Generator[SqliteDirectory]:
    directory = SqliteDirectory.open(tmp_path / "broker.db", clock=clock)
    yield directory
    directory.close()


@pytest.fixture
def two(tmp_path: Path, directory: SqliteDirectory, clock: MovableClock) -> Generator[list[SqliteDirectory]]:
    """Two brokers on one file."""
    other = SqliteDirectory.open(tmp_path / "broker.db", clock=clock)
    yield [directory, other]
    other.close()


def race(directories: list[SqliteDirectory], ask: Callable[[SqliteDirectory], T]) -> list[T]:
    """What each of eight threads gets that ask at once."""
    with ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(ask, directories[number % len(directories)]) for number in range(8)]
        return [answer.result() for answer in asked]


def test_what_is_put_in_comes_out(directory: SqliteDirectory) -> None:
    account = Account("Ann", "hash", frozenset({"a", "b"}), frozenset({"g"}), "acme", created_at_ms=5)
    client = Client("desk", "Desk", "hash", ("x",), ("b", "a"), None, frozenset({"g"}), "acme", "olga", True, True, 5)
    key = ApiKey("desk", "k1", "hash", "ann", "acme", frozenset({"a"}), frozenset({"g"}), "olga", 5, 6, 0)
    directory.add_account(account)
    directory.add_client(client)
    directory.add_api_key(key)
    directory.add_code(CODE)
    assert directory.account("ANN ") == account
    assert directory.accounts() == (account,)
    assert directory.client("desk") == client
    assert directory.clients() == (client,)
    assert directory.api_key("k1") == key
    assert directory.api_keys() == (key,)
    assert directory.spend_code("h", "desk") == CODE
    assert directory.update_client(replace(client, name="Other"))
    assert not directory.update_client(replace(client, client_id="nobody"))
    assert not directory.update_account(replace(account, name="nobody"))


def test_the_file_is_for_its_owner_only(tmp_path: Path, directory: SqliteDirectory) -> None:
    assert stat.S_IMODE((tmp_path / "broker.db").stat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["ann", "ANN", "ａｎｎ", " ann"])
def test_a_name_has_one_meaning(name: str, directory: SqliteDirectory) -> None:
    directory.add_account(Account("ann"))
    with pytest.raises(Conflict):
        directory.add_account(Account(name))
    with pytest.raises(Conflict):
        directory.add_client(Client(name))
    assert directory.remove_account("ann")
    directory.add_client(Client(name))
    with pytest.raises(Conflict):
        directory.add_account(Account("ann"))


def test_a_code_is_taken_once_however_many_ask(two: list[SqliteDirectory]) -> None:
    for round_number in range(5):
        code = replace(CODE, code_hash=f"h{round_number}")
        two[0].add_code(code)
        taken = race(two, partial(SqliteDirectory.spend_code, code_hash=code.code_hash, client_id="desk"))
        assert [one for one in taken if one] == [code]


def test_a_refresh_token_is_spent_once_however_many_ask(two: list[SqliteDirectory]) -> None:
    for round_number in range(5):
        token = replace(REFRESH, token_hash=f"r{round_number}", grant=replace(GRANT, grant_id=f"g{round_number}"))
        two[0].add_refresh_token(token)
        spend = partial(SqliteDirectory.spend_refresh_token, token_hash=token.token_hash, client_id="desk")
        spent = race(two, spend)
        assert spent.count(True) == 1


def test_a_code_is_for_its_client_and_its_time(directory: SqliteDirectory, clock: MovableClock) -> None:
    directory.add_code(CODE)
    assert directory.spend_code("h", "other") is None
    clock.at_ms = CODE.expires_at_ms
    assert directory.spend_code("h", "desk") is None


def test_a_spent_secret_shown_again_ends_the_grant(directory: SqliteDirectory) -> None:
    directory.add_code(CODE)
    assert directory.spend_code("h", "desk")
    directory.add_refresh_token(REFRESH)
    before = directory.generation()
    assert directory.spend_code("h", "desk") is None
    assert directory.generation() > before
    assert directory.standing("desk", "", ["g1"]).revoked
    assert directory.refresh_token("r1", "desk") is None
    with pytest.raises(Conflict):
        directory.add_refresh_token(replace(REFRESH, token_hash="r2"))


ENDINGS: list[Callable[[SqliteDirectory], object]] = [
    lambda directory: directory.remove_account("ann"),
    lambda directory: directory.update_account(Account("ann")),
    lambda directory: directory.remove_client("desk"),
    lambda directory: directory.update_client(Client("desk")),
    lambda directory: directory.revoke_api_key("k1"),
    lambda directory: directory.revoke("t1", START_MS + 1),
]


@pytest.mark.parametrize("ending", ENDINGS)
def test_whatever_ends_a_right_raises_the_generation(
    ending: Callable[[SqliteDirectory], object], two: list[SqliteDirectory]
) -> None:
    two[0].add_account(Account("ann"))
    two[0].add_client(Client("desk"))
    two[0].add_api_key(ApiKey("desk", "k1"))
    before = two[1].generation()
    ending(two[0])
    assert two[1].generation() > before


def test_a_removed_party_takes_what_it_was_given_with_it(directory: SqliteDirectory) -> None:
    for remove in (lambda: directory.remove_account("Ann"), lambda: directory.remove_client("desk")):
        directory.add_account(Account("ann"))
        directory.add_client(Client("desk"))
        directory.add_code(CODE)
        directory.add_refresh_token(REFRESH)
        directory.add_session(BrowserSession("c", "ann", START_MS + 1000))
        assert remove()
        assert directory.spend_code("h", "desk") is None
        assert directory.refresh_token("r1", "desk") is None
        directory.remove_account("ann")
        directory.remove_client("desk")
        assert directory.session("c") is None


def test_what_has_run_out_is_forgotten(directory: SqliteDirectory, clock: MovableClock) -> None:
    directory.add_account(Account("ann"))
    directory.add_session(BrowserSession("c", "ann", START_MS + 1000))
    directory.revoke("t1", START_MS + 1000)
    assert directory.session("c")
    directory.add_code(CODE)
    clock.at_ms += 120_000
    assert directory.session("c") is None
    assert directory.spend_code("h", "desk") is None
    directory.add_session(BrowserSession("d", "ann", clock.at_ms + 1000))
    assert directory.standing("", "", ["t1"]).revoked, "a call may have been held meanwhile"
    clock.at_ms += directory_rows.REVOKED_MS
    directory.add_session(BrowserSession("e", "ann", clock.at_ms + 1000))
    assert not directory.standing("", "", ["t1"]).revoked


def test_the_first_signing_key_is_made_once(two: list[SqliteDirectory]) -> None:
    made = race(two, lambda directory: keys.signing_key(directory, START_MS).kid)
    assert len(set(made)) == 1
    assert len(two[0].signing_keys()) == 1


def test_a_rotated_key_verifies_until_its_tokens_are_gone(directory: SqliteDirectory, clock: MovableClock) -> None:
    old = keys.signing_key(directory, clock.at_ms).kid
    clock.at_ms += 1
    new = keys.rotate(directory, clock.at_ms)
    assert keys.signing_key(directory, clock.at_ms).kid == new
    assert [key["kid"] for key in keys.jwks(directory)["keys"]] == [new, old]
    clock.at_ms += keys.OUTLIVES_MS + 1
    assert [key["kid"] for key in keys.jwks(directory)["keys"]] == [new]


def test_strangers_cannot_fill_the_directory(directory: SqliteDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory_rows, "DYNAMIC_CLIENTS", 2)
    for name in ("one", "two", "three"):
        directory.add_client(Client(name, dynamic=True, created_at_ms=len(name)))
    assert len(directory.clients()) == 2
    for client in directory.clients():
        grant = replace(GRANT, client_id=client.client_id, grant_id=client.client_id)
        directory.add_refresh_token(replace(REFRESH, token_hash=client.client_id, grant=grant))
    with pytest.raises(Conflict):
        directory.add_client(Client("four", dynamic=True))
    directory.add_client(Client("by-the-operator"))


def test_a_closed_directory_says_so(tmp_path: Path, clock: MovableClock) -> None:
    directory = SqliteDirectory.open(tmp_path / "closed.db", clock=clock)
    directory.close()
    with pytest.raises(RecordUnavailable):
        directory.accounts()
    with pytest.raises(RecordUnavailable):
        directory.remove_account("ann")
