"""`broker serve`: the broker at work, over HTTP or over this process's standard input and output."""

from __future__ import annotations

from typing import Annotated

import typer

from broker.faces.cli import options, start


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
    config: options.Config = None,
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
    start.start(stdio=stdio, port=port, config=config)
