"""How the demo speaks: numbered steps, who said what to whom, and what was expected where something else came."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from typing import Any

WIDTH = max(40, min(112, shutil.get_terminal_size((112, 24)).columns)) if sys.stdout.isatty() else 112


class Deviation(Exception):
    """Something came out otherwise than the demo claims."""

    def __init__(self, what: str, expected: object, came: object) -> None:
        super().__init__(f"NOT AS TOLD: {what}\n  expected: {expected}\n  came:     {came}")


def say(*lines: str) -> None:
    for line in lines:
        print(line, flush=True)


def step(number: int, title: str) -> None:
    say("", f"{number}. {title}")


def note(text: str) -> None:
    """A sentence of our own."""
    say(textwrap.fill(text, WIDTH, initial_indent="   ", subsequent_indent="   "))


def asks(who: str, tool: str, arguments: dict[str, Any]) -> None:
    say(f"   {who} → {tool} {json.dumps(arguments, ensure_ascii=False)}")


def hears(text: str) -> None:
    """What came back, cut to what a reader takes in."""
    flat = " ".join(text.split())
    say(
        textwrap.fill(
            textwrap.shorten(flat, 420, placeholder=" …"), WIDTH, initial_indent="     ← ", subsequent_indent="       "
        )
    )


def shown(command: str, output: str, *, lines: int = 12) -> None:
    """A command a reader may type, and what it prints."""
    say(f"   $ {command}")
    printed = output.rstrip().splitlines()
    say(*(f"     {line}" for line in printed[:lines]))
    if len(printed) > lines:
        say(f"     … and {len(printed) - lines} more lines")


def expect(what: str, expected: object, came: object) -> None:
    """Raises Deviation unless they are equal."""
    if expected != came:
        raise Deviation(what, expected, came)


def expect_in(what: str, part: str, whole: str) -> None:
    """Raises Deviation unless the part is in the whole."""
    if part not in whole:
        raise Deviation(what, f"… {part} …", whole)
