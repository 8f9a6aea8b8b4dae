"""What the options that several commands have are called, and the words of their help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from broker.faces.cli.house import SETTINGS_FILE

Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="PATH",
        envvar="BROKER_CONFIG",
        show_default=False,
        help=f"The settings file; without it, {SETTINGS_FILE} in this folder, or the defaults.",
    ),
]
At = Annotated[
    str,
    typer.Option(
        "--broker",
        metavar="URL",
        envvar="BROKER_URL",
        show_default=False,
        help="Ask a remote broker, as whoever `broker login` signed in there; without it, the records of this machine.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
As = Annotated[
    str,
    typer.Option(
        "--as", metavar="AGENT", help="The agent that asks: a registered client's id, or `local`.", show_default=False
    ),
]


def scope(text: str) -> str:
    """For an option that takes scopes. Raises BadParameter: in a token two words would be two scopes."""
    from broker.policies.scope import check  # imported here: only commands that take scopes pay for it

    try:
        return check(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text[:64]!r}: {error}") from None
