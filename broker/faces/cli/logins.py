"""Who this person is at remote brokers: one file of sign-ins, readable by its owner alone.

A refresh token is spent by its use, and showing it twice ends the sign-in; so whoever renews holds the file's lock and
looks again first. What must not live here: how one signs in (login), and what is then asked (remote).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jiter
import orjson

from broker.data import dataclass
from broker.errors import Unauthenticated

FILE = "logins.json"


@dataclass(frozen=True, slots=True)
class Login:
    """At one broker. expires_at_s: of the access token, seconds since 1970; 0 = not said."""

    broker: str  # its base URL
    issuer: str
    client_id: str
    token_endpoint: str
    access_token: str
    refresh_token: str = ""
    expires_at_s: int = 0
    revocation_endpoint: str = ""


def folder() -> Path:
    """`$XDG_CONFIG_HOME/broker`, or `~/.config/broker`."""
    base = os.environ.get("XDG_CONFIG_HOME", "")
    return (Path(base) if base else Path.home() / ".config") / "broker"


def all_logins() -> dict[str, Login]:
    """By the broker's URL. Raises Unauthenticated when the file is not as we wrote it."""
    path = folder() / FILE
    try:
        found: Any = jiter.from_json(path.read_bytes())
        return {url: Login(broker=url, **fields) for url, fields in found.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError):
        raise Unauthenticated(
            f"The sign-ins in {path} cannot be read.", next_step="Remove the file and run `broker login` again."
        ) from None


def at(broker: str) -> Login:
    """Raises Unauthenticated."""
    login = all_logins().get(broker)
    if login is None:
        raise Unauthenticated(f"You are not signed in at {broker}.", next_step=f"Run `broker login {broker}`.")
    return login


def renewed(broker: str, is_good: Callable[[Login], bool], renew: Callable[[Login], Login]) -> Login:
    """The sign-in, renewed unless it is good by now: another process may have done it. Blocks."""
    with _locked():
        login = at(broker)
        if is_good(login):
            return login
        login = renew(login)
        _write({**all_logins(), broker: login})
        return login


def keep(login: Login) -> Path:
    with _locked():
        _write({**all_logins(), login.broker: login})
    return folder() / FILE


def forget(broker: str) -> None:
    with _locked():
        _write({url: login for url, login in all_logins().items() if url != broker})


@contextmanager
def _locked() -> Generator[None]:
    import fcntl

    folder().mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(folder() / f"{FILE}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(logins: dict[str, Login]) -> None:
    """The whole file, replaced at once; never readable by others, not even for a moment."""
    path = folder() / FILE
    fields = {url: {key: value for key, value in asdict(one).items() if key != "broker"} for url, one in logins.items()}
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(orjson.dumps(fields, option=orjson.OPT_INDENT_2))
    fresh.replace(path)
