"""`broker demo`: the whole story, played by the examples that come with the broker."""

from __future__ import annotations

import sys
from importlib import import_module, util
from pathlib import Path
from typing import Annotated, Any

import typer

from broker.errors import Problem, SettingsError


def demo(
    keep: Annotated[
        Path | None,
        typer.Option("--keep", metavar="FOLDER", show_default=False, help="Work in this empty folder and leave it."),
    ] = None,
) -> None:
    """Play the whole story: two agents and every kind of answer, recorded and verified.

    Starts an order service, two MCP servers and a broker in a folder of its own, and touches nothing else. Needs no
    network and asks nothing.

    Example:
      broker demo
      broker demo --keep story
    """
    code = _story().main(keep)
    if code:
        raise typer.Exit(int(code))


def _story() -> Any:
    """The scenario: `broker.examples` when installed, `examples/` beside the package in the repository."""
    if util.find_spec("broker.examples") is not None:
        return import_module("broker.examples.demo")
    root = Path(__file__).resolve().parents[3]
    if not (root / "examples" / "demo" / "__init__.py").is_file():
        raise SettingsError([Problem(str(root / "examples"), 0, 0, "the demo is not there; install the package whole")])
    sys.path.insert(0, str(root))  # the repository's folder is not a package of ours, so it is not on the path yet
    return import_module("examples.demo")
