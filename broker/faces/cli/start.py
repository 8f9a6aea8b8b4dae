"""The way of `broker serve` from its options to a broker at work, and a short cut to it from the command line.

The library of the command line is a tenth of a start and of the memory, and says nothing about a line that is plainly
right. So such a line of `serve` is read here; any other (help, abbreviations, mistakes) is the library's to read and to
answer. A law in the tests holds this reading to that one.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from broker.errors import Problem, SettingsError
from broker.faces.cli import house

if TYPE_CHECKING:
    import socket

    from broker.settings import Settings

_VALUES = {"--port": re.compile(r"[0-9]{1,4}|[1-5][0-9]{4}"), "--config": re.compile(r"[^-].*", re.DOTALL)}


def plainly(arguments: Sequence[str]) -> dict[str, Any] | None:
    """What `start` is asked by these words of a command line; None when they are not plainly a `serve`."""
    if not arguments or arguments[0] != "serve":
        return None
    words, given = iter(arguments[1:]), dict[str, str]()
    for word in words:
        value = "" if word == "--stdio" else next(words, "")
        if word in given or (word != "--stdio" and not (word in _VALUES and _VALUES[word].fullmatch(value))):
            return None
        given[word] = value
    if given.keys() >= {"--stdio", "--port"}:
        return None
    config = given.get("--config") or os.environ.get("BROKER_CONFIG")
    return {
        "stdio": "--stdio" in given,
        "port": int(given["--port"]) if "--port" in given else None,
        "config": Path(config) if config else None,
    }


def start(*, stdio: bool, port: int | None, config: Path | None) -> None:
    """Serve until the end. port: instead of the settings'. Errors as `serving.over_http` and `house.read`."""
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
