"""Whom the broker knows by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

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


class Directory(Protocol):
    """Whom the broker knows by itself, and what its embedded authorization server has handed out.

    Methods block on the disk: call them from a worker thread. Each is one transaction; any number of threads and
    processes may use one directory at once. Raises RecordUnavailable when it cannot be read or written.
    """

    def generation(self) -> int:
        """Grows whenever something that was valid may have ceased to be (revocation, removal, narrower scopes).

        Who remembers that a credential was good asks here every few seconds and forgets when it has grown.
        """
        ...

    def accounts(self) -> tuple[Account, ...]: ...

    def account(self, name: str) -> Account | None:
        """By any spelling that `person()` folds into the account's name."""
        ...

    def add_account(self, account: Account) -> None:
        """Raises Conflict when an account or a client has this name already (an identity has one meaning)."""
        ...

    def update_account(self, account: Account) -> bool:
        """Replace the account of this name; False when there is none."""
        ...

    def remove_account(self, name: str) -> bool:
        """With its sessions, codes and refresh tokens."""
        ...

    def clients(self) -> tuple[Client, ...]: ...

    def client(self, client_id: str) -> Client | None: ...

    def add_client(self, client: Client) -> None:
        """Raises Conflict as add_account does, and when there are too many dynamic clients."""
        ...

    def update_client(self, client: Client) -> bool: ...

    def remove_client(self, client_id: str) -> bool:
        """With its codes and refresh tokens."""
        ...

    def api_keys(self) -> tuple[ApiKey, ...]: ...

    def api_key(self, key_id: str) -> ApiKey | None: ...

    def add_api_key(self, key: ApiKey) -> None: ...

    def revoke_api_key(self, key_id: str) -> bool: ...

    def add_code(self, code: Code) -> None: ...

    def spend_code(self, code_hash: str, client_id: str) -> Code | None:
        """Take the code: of any number who ask at once, one gets it. Showing a spent code again revokes its grant."""
        ...

    def add_refresh_token(self, token: RefreshToken) -> None:
        """Raises Conflict when the grant has been revoked in the meantime."""
        ...

    def refresh_token(self, token_hash: str, client_id: str) -> RefreshToken | None:
        """A token of this client that can still be spent. Showing a spent one revokes its grant."""
        ...

    def spend_refresh_token(self, token_hash: str, client_id: str) -> bool:
        """Mark it used; True for one caller only. Spending a spent one revokes its grant."""
        ...

    def revoke(self, token_id: str, until_ms: int) -> None:
        """Refuse a token (jti), or all tokens of a grant (grant_id). until_ms: remember it until then at least."""
        ...

    def standing(self, client_id: str, account: str, token_ids: Sequence[str]) -> Standing:
        """client: of this id; account: of this name ("": none asked for); revoked: whether any of the ids is."""
        ...

    def add_session(self, session: BrowserSession) -> None: ...

    def session(self, cookie_hash: str) -> BrowserSession | None: ...

    def remove_session(self, cookie_hash: str) -> None: ...

    def remove_sessions(self, account: str) -> None:
        """Those of every browser that is signed in with this account."""
        ...

    def signing_keys(self) -> tuple[SigningKey, ...]:
        """Those that still verify, the one that signs first."""
        ...

    def add_signing_key(self, key: SigningKey, *, retire_others_at_ms: int | None) -> SigningKey:
        """With None: only when there is no key in use yet; otherwise the others verify until then.

        Returns the key that signs now, which may be another process's.
        """
        ...

    def close(self) -> None: ...
