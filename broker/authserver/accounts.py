"""People who sign in here: making accounts, and checking a password without telling what was wrong.

argon2 is slow on purpose, so it runs in a thread, two at a time, and attempts are counted before it runs. A person is
slowed down, never locked out: the windows are a minute long and belong to where the attempt comes from.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial

import anyio
from anyio import to_thread
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from broker.authserver.windows import Windows
from broker.errors import InvalidArguments
from broker.model.directory import Account
from broker.model.principal import person
from broker.ports import Directory

PASSWORD_CHARS = range(8, 1025)
NAME_CHARS = 128
PER_NAME, PER_ADDRESS, IN_ALL = 5, 20, 120  # attempts in a window of `windows`

_HASHER = PasswordHasher()


def hashed(password: str) -> str:
    """argon2id of a password. Raises InvalidArguments when it is too short or too long. Takes about 0.1 s."""
    if len(password) not in PASSWORD_CHARS:
        raise InvalidArguments(f"A password has {PASSWORD_CHARS.start} to {PASSWORD_CHARS.stop - 1} characters.")
    return _HASHER.hash(password)


def checked_name(name: str) -> str:
    """A name for an account or a client. Raises InvalidArguments when people could not tell it from another."""
    if not 0 < len(name) <= NAME_CHARS or not name.isprintable() or name != name.strip():
        raise InvalidArguments("A name has 1 to 128 visible characters, and no blank at either end.")
    return name


def create(directory: Directory, account: Account, password: str) -> Account:
    """Store an account with this password. Blocks. Raises InvalidArguments; Conflict when the name is taken."""
    checked_name(account.name)
    stored = replace(account, password_hash=hashed(password))
    directory.add_account(stored)
    return stored


class SignIn:
    """Password checks for one process."""

    def __init__(self, directory: Directory, *, behind_proxy: bool = False) -> None:
        """behind_proxy: everybody has the proxy's address, so it does not tell people apart."""
        self._directory = directory
        self._per_address = IN_ALL if behind_proxy else PER_ADDRESS
        self._windows = Windows()
        self._threads = anyio.CapacityLimiter(2)

    def wait_s(self, name: str, address: str) -> int:
        """Seconds until another attempt is allowed; 0: now, and it is counted."""
        limits = {_by_name(name, address): PER_NAME, ("address", address): self._per_address, ("all", ""): IN_ALL}
        return self._windows.wait_s(limits)

    def forget(self, name: str, address: str) -> None:
        """After a success: whoever knows the password is not slowed down."""
        self._windows.forget(_by_name(name, address))

    async def check(self, name: str, password: str) -> Account | None:
        """The account, or None: unknown, disabled and wrong password take the same time and look the same."""
        return await to_thread.run_sync(partial(self._check, name, password), limiter=self._threads)

    def _check(self, name: str, password: str) -> Account | None:
        account = self._directory.account(name) if 0 < len(name) <= NAME_CHARS else None
        usable = account is not None and not account.disabled and account.password_hash != ""
        right = _verified(account.password_hash if account and usable else _decoy(), password)
        return account if usable and right else None


def _by_name(name: str, address: str) -> tuple[str, str]:
    return "name", f"{address} {person(name[:NAME_CHARS])}"


def _verified(password_hash: str, password: str) -> bool:
    if len(password) >= PASSWORD_CHARS.stop:
        return False
    try:
        return _HASHER.verify(password_hash, password)
    except (VerificationError, InvalidHashError):
        return False


@cache
def _decoy() -> str:
    """A hash nobody has the password of, so that an unknown name costs what a known one does."""
    return _HASHER.hash("nobody signs in with this")
