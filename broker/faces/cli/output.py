"""What a command prints: tables for people, JSON for programs, one sentence for a mistake.

Results go to stdout, everything else to stderr. Colour only on a terminal and never with NO_COLOR. Every text passes
`text.safe` here, so a command cannot forget it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import orjson

from broker.errors import BrokerError, ConfigurationError
from broker.faces.text import safe, safe_json

if TYPE_CHECKING:
    from typing import TextIO

# Styles by meaning. Words carry the meaning too; colour only repeats it.
STYLES: Mapping[str, str] = {
    "succeeded": "32", "allow": "32", "up": "32", "ok": "32",
    "held": "33", "approved": "33", "hold": "33", "dispatching": "33", "degraded": "33", "starting": "33", "look": "33",
    "denied": "31", "failed": "31", "rejected": "31", "deny": "31", "down": "31", "outcome_unknown": "31", "bad": "31",
    "dim": "2", "bold": "1",
}  # fmt: skip


def has_colour(stream: TextIO) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def styled(text: str, style: str, stream: TextIO | None = None) -> str:
    """Foreign or own text, safe, coloured by meaning where colour is wanted."""
    shown, code = safe(text), STYLES.get(style.strip())
    return f"\x1b[{code}m{shown}\x1b[0m" if code and has_colour(stream or sys.stdout) else shown


def say(*lines: str) -> None:
    """Lines for stdout, already safe (by `styled`, `safe` or `rendered`, or because we wrote them)."""
    for line in lines:
        print(line)


def tell(*lines: str) -> None:
    """Lines for stderr, already safe."""
    for line in lines:
        print(line, file=sys.stderr)


def print_json(document: Any) -> None:
    """One JSON document, indented."""
    print(safe_json(orjson.dumps(document, default=_plain, option=orjson.OPT_INDENT_2).decode()))


def print_json_line(document: Any) -> None:
    """One JSON document on one line, at once."""
    print(json_line(document), flush=True)


def json_line(document: Any) -> str:
    return safe_json(orjson.dumps(document, default=_plain).decode())


def _plain(value: Any) -> Any:
    if isinstance(value, (set, frozenset)):
        return sorted(value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType] – sets of names
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, Mapping):
        return dict(value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType] – JSON by its place
    return str(value)


def print_table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], *, styles: Mapping[int, str] | None = None
) -> None:
    """A table of foreign text. styles: column -> "*" (by the cell's own word) or a style.

    On a terminal long cells are folded to its width; in a pipe nothing is folded or cut.
    """
    from rich.console import Console  # 40 ms that most commands do not need
    from rich.style import Style
    from rich.table import Table
    from rich.text import Text

    ansi = {"32": "green", "33": "yellow", "31": "red", "2": "dim", "1": "bold"}
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style=Style(bold=True))
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        cells: list[Text] = []
        for column, cell in enumerate(row):
            style = (styles or {}).get(column, "")
            code = STYLES.get(cell if style == "*" else style, "")
            cells.append(Text(safe(cell), style=ansi.get(code, "")))
        table.add_row(*cells)
    terminal = sys.stdout.isatty()
    console = Console(
        file=sys.stdout,
        width=None if terminal else 100_000,
        force_terminal=has_colour(sys.stdout),
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=False,
    )
    with console.capture() as captured:
        console.print(table)
    say(*(line.rstrip() for line in captured.get().splitlines()))


def stamp(at_ms: int) -> str:
    """A time for people: local, to the second."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S") if at_ms else "–"


def explain_error(error: BrokerError) -> None:
    """An error as a person at a terminal needs it, on stderr."""
    if isinstance(error, ConfigurationError):
        tell(*(safe(str(problem), lines=True) for problem in error.problems))
    else:
        tell(safe(error.sentence, lines=True))
