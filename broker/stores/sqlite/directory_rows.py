"""The directory's tables, and the small clauses and row forms that its methods are made of.

Sets of words are kept as JSON arrays. A clause works inside its caller's transaction and never opens one.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import orjson

from broker.errors import Conflict
from broker.model.directory import Account, ApiKey, Client, Grant, SigningKey
from broker.model.principal import person
from broker.stores.sqlite.migrations import Migrations

DYNAMIC_CLIENTS = 1000
REVOKED_MS = 400 * 86_400_000  # a call may be held for a year, and must not run for a grant revoked meanwhile

T = TypeVar("T")

MIGRATIONS = Migrations("directory")

SCHEMA = """
create table directory_generation (one integer primary key check (one = 1), generation integer not null) strict;
insert into directory_generation values (1, 1);
create table identities (person text primary key, kind text not null) strict;
create table accounts (
    person text primary key, name text not null, password_hash text not null, scopes text not null,
    groups text not null, tenant text not null, disabled integer not null, created_at_ms integer not null) strict;
create table clients (
    client_id text primary key, name text not null, secret_hash text not null, grants text not null,
    redirect_uris text not null, scopes text, groups text not null, tenant text not null, owner text not null,
    dynamic integer not null, disabled integer not null, created_at_ms integer not null) strict;
create table api_keys (
    key_id text primary key, key_hash text not null, agent text not null, user text not null, tenant text not null,
    scopes text not null, groups text not null, owner text not null, created_at_ms integer not null,
    expires_at_ms integer not null, revoked_at_ms integer not null) strict;
create table codes (
    code_hash text primary key, grant_id text not null, client_id text not null, account text not null,
    scopes text not null, resources text not null, redirect_uri text not null, code_challenge text not null,
    expires_at_ms integer not null) strict;
create table spent_codes (code_hash text primary key, grant_id text not null, expires_at_ms integer not null) strict;
create table refresh_tokens (
    token_hash text primary key, grant_id text not null, client_id text not null, account text not null,
    scopes text not null, resources text not null, expires_at_ms integer not null, used_at_ms integer not null) strict;
create index refresh_tokens_grant on refresh_tokens (grant_id);
create table revoked (token_id text primary key, expires_at_ms integer not null) strict;
create table browser_sessions (
    cookie_hash text primary key, account text not null, expires_at_ms integer not null) strict;
create table signing_keys (
    kid text primary key, private_jwk text not null, created_at_ms integer not null,
    retires_at_ms integer not null) strict;
"""


@MIGRATIONS
def tables(db: sqlite3.Connection) -> None:
    for statement in SCHEMA.split(";\n"):
        if statement.strip():
            db.execute(statement)


def one(db: sqlite3.Connection, read: Callable[[sqlite3.Row], T], sql: str, *values: Any) -> T | None:
    row = db.execute(sql, values).fetchone()
    return None if row is None else read(row)


def advance(db: sqlite3.Connection) -> None:
    db.execute("update directory_generation set generation = generation + 1")


def claim_name(db: sqlite3.Connection, name: str, kind: str) -> None:
    """One namespace for accounts and clients: otherwise a person could be taken for an agent, or review its calls."""
    taken = db.execute("select kind from identities where person = ?", (person(name),)).fetchone()
    if taken is not None:
        raise Conflict(f"There is already {_A[taken['kind']]} named {name[:64]!r}.", next_step="Choose another name.")
    db.execute("insert into identities values (?, ?)", (person(name), kind))


_A = {"account": "an account", "client": "a client"}


def make_room(db: sqlite3.Connection) -> None:
    """Anybody on this machine can register; the oldest registration nobody signed in with makes room for a new one."""
    if db.execute("select count(*) from clients where dynamic = 1").fetchone()[0] < DYNAMIC_CLIENTS:
        return
    unused = db.execute(
        "select client_id from clients where dynamic = 1 and client_id not in (select client_id from refresh_tokens)"
        " order by created_at_ms limit 1"
    ).fetchone()
    if unused is None:
        raise Conflict(
            f"There are {DYNAMIC_CLIENTS} dynamically registered clients in use.",
            next_step="Remove some with `broker client remove`.",
        )
    remove_client(db, unused["client_id"])
    advance(db)


def remove_client(db: sqlite3.Connection, client_id: str) -> bool:
    found = db.execute("delete from clients where client_id = ?", (client_id,)).rowcount > 0
    db.execute("delete from identities where person = ? and kind = 'client'", (person(client_id),))
    db.execute("delete from codes where client_id = ?", (client_id,))
    db.execute("delete from refresh_tokens where client_id = ?", (client_id,))
    return found


def revoke(db: sqlite3.Connection, token_id: str, now_ms: int, until_ms: int = 0) -> None:
    db.execute(
        "insert into revoked values (?, ?) on conflict (token_id) do update set"
        " expires_at_ms = max(expires_at_ms, excluded.expires_at_ms)",
        (token_id, max(until_ms, now_ms + REVOKED_MS)),
    )


def revoke_grant(db: sqlite3.Connection, grant_id: str, now_ms: int) -> None:
    revoke(db, grant_id, now_ms)
    db.execute("delete from refresh_tokens where grant_id = ?", (grant_id,))
    advance(db)


def refresh_row(db: sqlite3.Connection, token_hash: str, client_id: str, now_ms: int) -> sqlite3.Row | None:
    row = db.execute(
        "select * from refresh_tokens where token_hash = ? and client_id = ?", (token_hash, client_id)
    ).fetchone()
    if row is not None and row["used_at_ms"]:
        revoke_grant(db, row["grant_id"], now_ms)
        return None
    return row if row is not None and row["expires_at_ms"] > now_ms else None


def signing_keys(db: sqlite3.Connection, now_ms: int) -> tuple[SigningKey, ...]:
    rows = db.execute(
        "select kid, private_jwk, created_at_ms, retires_at_ms from signing_keys"
        " where retires_at_ms = 0 or retires_at_ms > ? order by retires_at_ms > 0, created_at_ms desc",
        (now_ms,),
    )
    return tuple(SigningKey(*row) for row in rows)


def words_of(words: Iterable[str]) -> str:
    return orjson.dumps(sorted(words)).decode()


def in_order(words: Iterable[str]) -> str:
    return orjson.dumps(list(words)).decode()


def set_of(text: str) -> frozenset[str]:
    return frozenset(orjson.loads(text))


def account_of(row: sqlite3.Row) -> Account:
    return Account(
        name=row["name"],
        password_hash=row["password_hash"],
        scopes=set_of(row["scopes"]),
        groups=set_of(row["groups"]),
        tenant=row["tenant"],
        disabled=bool(row["disabled"]),
        created_at_ms=row["created_at_ms"],
    )


def account_row(account: Account) -> dict[str, Any]:
    return {
        "person": person(account.name),
        "name": account.name,
        "password_hash": account.password_hash,
        "scopes": words_of(account.scopes),
        "groups": words_of(account.groups),
        "tenant": account.tenant,
        "disabled": int(account.disabled),
        "created_at_ms": account.created_at_ms,
    }


def client_of(row: sqlite3.Row) -> Client:
    return Client(
        client_id=row["client_id"],
        name=row["name"],
        secret_hash=row["secret_hash"],
        grants=tuple(orjson.loads(row["grants"])),
        redirect_uris=tuple(orjson.loads(row["redirect_uris"])),
        scopes=None if row["scopes"] is None else set_of(row["scopes"]),
        groups=set_of(row["groups"]),
        tenant=row["tenant"],
        owner=row["owner"],
        dynamic=bool(row["dynamic"]),
        disabled=bool(row["disabled"]),
        created_at_ms=row["created_at_ms"],
    )


def client_row(client: Client) -> dict[str, Any]:
    return {
        "client_id": client.client_id,
        "name": client.name,
        "secret_hash": client.secret_hash,
        "grants": in_order(client.grants),
        "redirect_uris": in_order(client.redirect_uris),
        "scopes": None if client.scopes is None else words_of(client.scopes),
        "groups": words_of(client.groups),
        "tenant": client.tenant,
        "owner": client.owner,
        "dynamic": int(client.dynamic),
        "disabled": int(client.disabled),
        "created_at_ms": client.created_at_ms,
    }


def api_key_of(row: sqlite3.Row) -> ApiKey:
    return ApiKey(
        key_id=row["key_id"],
        key_hash=row["key_hash"],
        agent=row["agent"],
        user=row["user"],
        tenant=row["tenant"],
        scopes=set_of(row["scopes"]),
        groups=set_of(row["groups"]),
        owner=row["owner"],
        created_at_ms=row["created_at_ms"],
        expires_at_ms=row["expires_at_ms"],
        revoked_at_ms=row["revoked_at_ms"],
    )


def grant_of(row: sqlite3.Row) -> Grant:
    return Grant(
        grant_id=row["grant_id"],
        client_id=row["client_id"],
        account=row["account"],
        scopes=set_of(row["scopes"]),
        resources=tuple(orjson.loads(row["resources"])),
    )


def grant_row(grant: Grant) -> dict[str, Any]:
    return {
        "grant_id": grant.grant_id,
        "client_id": grant.client_id,
        "account": person(grant.account),
        "scopes": words_of(grant.scopes),
        "resources": in_order(grant.resources),
    }
