"""`broker serve`: the broker at work, over HTTP or over this process's standard input and output."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from broker.errors import Problem, SettingsError
from broker.faces.cli import house

if TYPE_CHECKING:
    import socket

    from broker.settings import Settings


def serve(
    stdio: Annotated[
        bool, typer.Option("--stdio", help="Serve one client over stdin and stdout, as programs start it.")
    ] = False,
    port: Annotated[
        int | None,
        typer.Option(
            "--port", min=0, max=65535, show_default=False, help="Another port than the settings'; 0 takes a free one."
        ),
    ] = None,
    config: house.Config = None,
) -> None:
    """Serve the agents: MCP over streamable HTTP at /mcp and SSE at /sse, or over stdio.

    Ends on SIGTERM or Ctrl-C after letting running calls end; SIGHUP reads the manifests again.

    Example:
      broker serve
      broker serve --port 0
      broker serve --stdio
    """
    if stdio and port is not None:
        raise typer.BadParameter("--stdio and --port exclude each other")
    settings = house.read(config)
    if port is not None:
        settings = settings.model_copy(update={"listen": settings.listen.model_copy(update={"port": port})})
    from broker.faces.cli.logs import to_stderr

    to_stderr(settings.log_level)
    import anyio

    from broker.faces.cli import serving

    if stdio:
        anyio.run(serving.over_stdio, settings, backend_options=_loop())
    else:
        bound = _bound(settings, house.settings_path(config))
        anyio.run(serving.over_http, settings, bound, backend_options=_loop())


def _loop() -> dict[str, bool]:
    from importlib.util import find_spec

    return {"use_uvloop": find_spec("uvloop") is not None}


def _bound(settings: Settings, path: Path | None) -> socket.socket:
    """The listening socket. Raises SettingsError that says who is there and what to do."""
    from broker.faces.web import bind

    try:
        return bind(settings)
    except OSError as error:
        where = f"{settings.listen.host}:{settings.listen.port}"
        if error.errno == errno.EADDRINUSE:
            who = "another broker" if house.is_broker(settings) else "another program"
            why = f"{where} is taken by {who}; stop it, or give another port: `broker serve --port 0` takes a free one"
        elif error.errno == errno.EACCES:
            why = f"{where} is not for this user; take a port above 1023"
        else:
            why = f"{where} cannot be listened on: {error.strerror or error}"
        raise SettingsError([Problem(str(path or house.SETTINGS_FILE), 0, 0, f"listen: {why}")]) from error
