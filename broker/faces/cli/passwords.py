"""Passwords of people, asked so that they stand in no history, no argument list and no environment."""

from __future__ import annotations

import secrets
import sys
from getpass import getpass
from typing import TYPE_CHECKING

import typer

from broker.errors import Forbidden
from broker.faces.text import safe

if TYPE_CHECKING:
    from broker.model.directory import Account
    from broker.ports import Directory

_LETTERS = "abcdefghijkmnpqrstuvwxyz23456789"  # none that are taken for another


def ask(prompt: str, *, stdin: bool) -> str:
    """From stdin's first line when told so, else hidden from the terminal. Raises BadParameter without either."""
    if stdin:
        return sys.stdin.readline().rstrip("\r\n")
    if not sys.stdin.isatty():
        raise typer.BadParameter("there is no terminal to ask for the password; use --password-stdin")
    return getpass(prompt)


def ask_new(name: str, *, stdin: bool) -> tuple[str, bool]:
    """A new password and whether we made it up: typed twice, or made up when nothing is typed."""
    if stdin:
        return ask("", stdin=True), False
    if sys.stdin.isatty():
        first = getpass(f"Password for {name} (empty: make one up): ")
        if first:
            if getpass("Again: ") != first:
                raise typer.BadParameter("the two are not the same; nothing was stored")
            return first, False
    return made_up(), True


def made_up() -> str:
    """Four groups of five letters: 99 bits, easy to read out and to type."""
    return "-".join("".join(secrets.choice(_LETTERS) for _ in range(5)) for _ in range(4))


async def proven(directory: Directory, name: str, *, stdin: bool) -> Account:
    """The account, proved by its password. Raises Forbidden in the same words for every way it is not."""
    from broker.authserver.accounts import SignIn

    account = await SignIn(directory).check(name, ask(f"Password of {safe(name)}: ", stdin=stdin))
    if account is None:
        raise Forbidden(f"{name} is no account with this password.", next_step="`broker user list` shows the accounts.")
    return account
