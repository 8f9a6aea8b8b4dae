"""`broker login` and `broker logout`: a person at a broker on another machine, for the commands that take --broker."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from broker.faces.cli.output import say, tell
from broker.faces.text import safe

Url = Annotated[
    str, typer.Argument(metavar="URL", show_default=False, help="The broker, such as https://broker.example.")
]


def login(
    url: Url,
    client_id: Annotated[
        str,
        typer.Option(
            "--client-id", show_default=False, help="A public client at an issuer that is not the broker's own."
        ),
    ] = "",
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Open none; paste the address that a browser elsewhere ended at.")
    ] = False,
) -> None:
    """Sign in at a remote broker, in a browser; then `broker holds --broker URL` and the like work there as you.

    The tokens are kept in a file that only you can read, and renewed while the sign-in lasts.

    Example:
      broker login https://broker.example
      broker holds --broker https://broker.example
    """
    from broker.faces.cli import logins, sign_in

    def show(address: str) -> None:
        tell("Sign in here:", f"  {safe(address)}")
        if not no_browser:
            import webbrowser

            webbrowser.open(address)

    def paste(_: str) -> str:
        tell("After signing in the browser ends at an address that begins with http://127.0.0.1. Paste it here:")
        return sys.stdin.readline(16_384)

    found = sign_in.sign_in(sign_in.base_url(url), client_id=client_id, show=show, paste=paste if no_browser else None)
    path = logins.keep(found)
    say(f"Signed in at {safe(found.broker)} by {safe(found.issuer)}. Kept in {safe(str(path))}.")


def logout(url: Url) -> None:
    """Sign out at a remote broker: the sign-in ends there, and is forgotten here.

    Example:
      broker logout https://broker.example
    """
    from broker.faces.cli import logins, sign_in

    found = logins.at(sign_in.base_url(url))
    heard = sign_in.sign_out(found)
    logins.forget(found.broker)
    say(f"Signed out at {safe(found.broker)}.")
    if not heard:
        tell("note: its issuer could not be told; the token ends by itself.")
