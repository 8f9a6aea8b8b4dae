"""The directory in SQLite: accounts, clients, keys and what was handed out, in the same file as the records.

Plain SQL on one connection behind a lock; a method is one transaction. Whatever can make a valid credential invalid
raises `generation` in that same transaction. What has run out is pruned on the way, at most once a minute.

What must not live here: who may do what (auth, authserver), and how secrets are made or hashed.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from broker.errors import Conflict, RecordUnavailable
from broker.model.directory import (
    Account,
    ApiKey,
    BrowserSession,
    Client,
    Code,
    RefreshToken,
    SigningKey,
    Standing,
)
from broker.model.principal import person
from broker.ports import Clock
from broker.stores.sqlite import directory_rows as rows
from broker.stores.sqlite.database import connect, migrate

P = TypeVar("P", Account, Client, ApiKey)

PRUNE_EVERY_MS = 60_000
SPENT_CODE_MS = 600_000  # how long a spent code is remembered, so that showing it again is noticed


@contextmanager
def _as_unavailable() -> Generator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise RecordUnavailable(
            f"The directory of accounts and clients cannot be used now: {error}.",
            next_step="Check the disk and the permissions of the database file.",
        ) from error


class SqliteDirectory:
    """ports.Directory on the database file of the store."""

    def __init__(self, connection: sqlite3.Connection, clock: Clock) -> None:
        self._connection = connection
        self._clock = clock
        self._lock = threading.Lock()
        self._pruned_at_ms = 0

    @classmethod
    def open(cls, path: Path, *, clock: Clock) -> SqliteDirectory:
        """Open and migrate; blocks on the disk. Raises RecordUnavailable."""
        with _as_unavailable():
            migrate(path, rows.MIGRATIONS)
            return cls(connect(path), clock)

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    # -------------------------------------------------------------------------------------------------- transactions

    @contextmanager
    def _reading(self) -> Generator[sqlite3.Connection]:
        with self._lock, _as_unavailable():
            yield self._connection

    @contextmanager
    def _writing(self) -> Generator[sqlite3.Connection]:
        """One immediate transaction; rolled back when the block raises."""
        with self._lock, _as_unavailable():
            self._connection.execute("begin immediate")
            try:
                yield self._connection
                self._connection.execute("commit")
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("rollback")

    def _dated(self, party: P) -> P:
        """With the time it was created: a token older than its party was made for another of the same name."""
        return party if party.created_at_ms else replace(party, created_at_ms=self._clock.now_ms())

    def generation(self) -> int:
        with self._reading() as db:
            return int(db.execute("select generation from directory_generation").fetchone()[0])

    # ------------------------------------------------------------------------------------------------------ accounts

    def accounts(self) -> tuple[Account, ...]:
        with self._reading() as db:
            return tuple(rows.account_of(row) for row in db.execute("select * from accounts order by person"))

    def account(self, name: str) -> Account | None:
        with self._reading() as db:
            return rows.one(db, rows.account_of, "select * from accounts where person = ?", person(name))

    def add_account(self, account: Account) -> None:
        with self._writing() as db:
            rows.claim_name(db, account.name, "account")
            db.execute(
                "insert into accounts values (:person, :name, :password_hash, :scopes, :groups, :tenant, :disabled,"
                " :created_at_ms)",
                rows.account_row(self._dated(account)),
            )

    def update_account(self, account: Account) -> bool:
        with self._writing() as db:
            cursor = db.execute(
                "update accounts set password_hash = :password_hash, scopes = :scopes, groups = :groups,"
                " tenant = :tenant, disabled = :disabled where person = :person",
                rows.account_row(account),
            )
            db.execute("delete from browser_sessions where account = ?", (person(account.name),))
            rows.advance(db)
            return cursor.rowcount > 0

    def remove_account(self, name: str) -> bool:
        key = person(name)
        with self._writing() as db:
            found = db.execute("delete from accounts where person = ?", (key,)).rowcount > 0
            db.execute("delete from identities where person = ? and kind = 'account'", (key,))
            for table in ("browser_sessions", "codes", "refresh_tokens"):
                db.execute(f"delete from {table} where account = ?", (key,))  # noqa: S608 – names from this tuple
            rows.advance(db)
            return found

    # ------------------------------------------------------------------------------------------------------- clients

    def clients(self) -> tuple[Client, ...]:
        with self._reading() as db:
            return tuple(rows.client_of(row) for row in db.execute("select * from clients order by client_id"))

    def client(self, client_id: str) -> Client | None:
        with self._reading() as db:
            return rows.one(db, rows.client_of, "select * from clients where client_id = ?", client_id)

    def add_client(self, client: Client) -> None:
        with self._writing() as db:
            rows.claim_name(db, client.client_id, "client")
            if client.dynamic:
                rows.make_room(db)
            db.execute(
                "insert into clients values (:client_id, :name, :secret_hash, :grants, :redirect_uris, :scopes,"
                " :groups, :tenant, :owner, :dynamic, :disabled, :created_at_ms)",
                rows.client_row(self._dated(client)),
            )

    def update_client(self, client: Client) -> bool:
        with self._writing() as db:
            cursor = db.execute(
                "update clients set name = :name, secret_hash = :secret_hash, grants = :grants,"
                " redirect_uris = :redirect_uris, scopes = :scopes, groups = :groups, tenant = :tenant, owner = :owner,"
                " disabled = :disabled where client_id = :client_id",
                rows.client_row(client),
            )
            rows.advance(db)
            return cursor.rowcount > 0

    def remove_client(self, client_id: str) -> bool:
        with self._writing() as db:
            found = rows.remove_client(db, client_id)
            rows.advance(db)
            return found

    # ------------------------------------------------------------------------------------------------------ API keys

    def api_keys(self) -> tuple[ApiKey, ...]:
        with self._reading() as db:
            return tuple(
                rows.api_key_of(row) for row in db.execute("select * from api_keys order by created_at_ms, key_id")
            )

    def api_key(self, key_id: str) -> ApiKey | None:
        with self._reading() as db:
            return rows.one(db, rows.api_key_of, "select * from api_keys where key_id = ?", key_id)

    def add_api_key(self, key: ApiKey) -> None:
        row = {
            "key_id": key.key_id,
            "key_hash": key.key_hash,
            "agent": key.agent,
            "user": key.user,
            "tenant": key.tenant,
            "scopes": rows.words_of(key.scopes),
            "groups": rows.words_of(key.groups),
            "owner": key.owner,
            "created_at_ms": self._dated(key).created_at_ms,
            "expires_at_ms": key.expires_at_ms,
            "revoked_at_ms": key.revoked_at_ms,
        }
        with self._writing() as db:
            db.execute(
                "insert into api_keys values (:key_id, :key_hash, :agent, :user, :tenant, :scopes, :groups, :owner,"
                " :created_at_ms, :expires_at_ms, :revoked_at_ms)",
                row,
            )

    def revoke_api_key(self, key_id: str) -> bool:
        with self._writing() as db:
            cursor = db.execute(
                "update api_keys set revoked_at_ms = ? where key_id = ? and revoked_at_ms = 0",
                (self._clock.now_ms(), key_id),
            )
            rows.advance(db)
            return cursor.rowcount > 0

    # ---------------------------------------------------------------------------------------------- codes and tokens

    def add_code(self, code: Code) -> None:
        with self._writing() as db:
            self._prune(db)
            db.execute(
                "insert into codes values (:code_hash, :grant_id, :client_id, :account, :scopes, :resources,"
                " :redirect_uri, :code_challenge, :expires_at_ms)",
                {
                    **rows.grant_row(code.grant),
                    "code_hash": code.code_hash,
                    "redirect_uri": code.redirect_uri,
                    "code_challenge": code.code_challenge,
                    "expires_at_ms": code.expires_at_ms,
                },
            )

    def spend_code(self, code_hash: str, client_id: str) -> Code | None:
        now_ms = self._clock.now_ms()
        with self._writing() as db:
            row = db.execute(
                "delete from codes where code_hash = ? and client_id = ? returning *", (code_hash, client_id)
            ).fetchone()
            if row is None:
                spent = db.execute("select grant_id from spent_codes where code_hash = ?", (code_hash,)).fetchone()
                if spent is not None:
                    rows.revoke_grant(db, spent["grant_id"], now_ms)
                return None
            db.execute("insert into spent_codes values (?, ?, ?)", (code_hash, row["grant_id"], now_ms + SPENT_CODE_MS))
            if row["expires_at_ms"] <= now_ms:
                return None
            return Code(code_hash, rows.grant_of(row), row["redirect_uri"], row["code_challenge"], row["expires_at_ms"])

    def add_refresh_token(self, token: RefreshToken) -> None:
        with self._writing() as db:
            self._prune(db)
            if db.execute("select 1 from revoked where token_id = ?", (token.grant.grant_id,)).fetchone():
                raise Conflict("This grant has been revoked.")
            db.execute(
                "insert into refresh_tokens values (:token_hash, :grant_id, :client_id, :account, :scopes, :resources,"
                " :expires_at_ms, :used_at_ms)",
                {
                    **rows.grant_row(token.grant),
                    "token_hash": token.token_hash,
                    "expires_at_ms": token.expires_at_ms,
                    "used_at_ms": token.used_at_ms,
                },
            )

    def refresh_token(self, token_hash: str, client_id: str) -> RefreshToken | None:
        now_ms = self._clock.now_ms()
        with self._writing() as db:
            row = rows.refresh_row(db, token_hash, client_id, now_ms)
            if row is None:
                return None
            return RefreshToken(token_hash, rows.grant_of(row), row["expires_at_ms"], row["used_at_ms"])

    def spend_refresh_token(self, token_hash: str, client_id: str) -> bool:
        now_ms = self._clock.now_ms()
        with self._writing() as db:
            if rows.refresh_row(db, token_hash, client_id, now_ms) is None:
                return False
            db.execute("update refresh_tokens set used_at_ms = ? where token_hash = ?", (now_ms, token_hash))
            return True

    def revoke(self, token_id: str, until_ms: int) -> None:
        with self._writing() as db:
            rows.revoke(db, token_id, self._clock.now_ms(), until_ms)
            db.execute("delete from refresh_tokens where grant_id = ?", (token_id,))
            rows.advance(db)

    def standing(self, client_id: str, account: str, token_ids: Sequence[str]) -> Standing:
        with self._reading() as db:
            marks = ", ".join("?" * len(token_ids))
            revoked = db.execute(f"select 1 from revoked where token_id in ({marks})", tuple(token_ids))  # noqa: S608
            return Standing(
                client=rows.one(db, rows.client_of, "select * from clients where client_id = ?", client_id),
                account=rows.one(db, rows.account_of, "select * from accounts where person = ?", person(account)),
                revoked=revoked.fetchone() is not None,
            )

    # ------------------------------------------------------------------------------------------------------ sessions

    def add_session(self, session: BrowserSession) -> None:
        with self._writing() as db:
            self._prune(db)
            db.execute(
                "insert into browser_sessions values (?, ?, ?)",
                (session.cookie_hash, person(session.account), session.expires_at_ms),
            )

    def session(self, cookie_hash: str) -> BrowserSession | None:
        with self._reading() as db:
            row = db.execute(
                "select s.cookie_hash, a.name, s.expires_at_ms from browser_sessions s join accounts a"
                " on a.person = s.account where s.cookie_hash = ? and s.expires_at_ms > ? and not a.disabled",
                (cookie_hash, self._clock.now_ms()),
            ).fetchone()
            return None if row is None else BrowserSession(*row)

    def remove_session(self, cookie_hash: str) -> None:
        with self._writing() as db:
            db.execute("delete from browser_sessions where cookie_hash = ?", (cookie_hash,))

    def remove_sessions(self, account: str) -> None:
        with self._writing() as db:
            db.execute("delete from browser_sessions where account = ?", (person(account),))

    # -------------------------------------------------------------------------------------------------- signing keys

    def signing_keys(self) -> tuple[SigningKey, ...]:
        with self._reading() as db:
            return rows.signing_keys(db, self._clock.now_ms())

    def add_signing_key(self, key: SigningKey, *, retire_others_at_ms: int | None) -> SigningKey:
        with self._writing() as db:
            if retire_others_at_ms is None:
                in_use = [known for known in rows.signing_keys(db, key.created_at_ms) if not known.retires_at_ms]
                if in_use:
                    return in_use[0]
            else:
                db.execute("update signing_keys set retires_at_ms = ? where retires_at_ms = 0", (retire_others_at_ms,))
            db.execute("insert into signing_keys values (?, ?, ?, 0)", (key.kid, key.private_jwk, key.created_at_ms))
            return key

    # ------------------------------------------------------------------------------------------------------- pruning

    def _prune(self, db: sqlite3.Connection) -> None:
        now_ms = self._clock.now_ms()
        if now_ms - self._pruned_at_ms < PRUNE_EVERY_MS:
            return
        self._pruned_at_ms = now_ms
        for table in ("codes", "spent_codes", "refresh_tokens", "revoked", "browser_sessions"):
            db.execute(f"delete from {table} where expires_at_ms <= ?", (now_ms,))  # noqa: S608 – names from this tuple
        db.execute("delete from signing_keys where retires_at_ms between 1 and ?", (now_ms,))
