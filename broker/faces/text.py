"""Text of others, made safe to look at.

Records, manifests and servers carry text we did not write: control characters that move a cursor, ANSI sequences,
letters that show nothing, marks that reverse the reading order. Whoever decides by what is on the screen must see the
characters that are there. So everything foreign passes `safe` before it is printed, and arguments pass `rendered`.

A character is escaped when it shows nothing, or nothing of its own: controls, formats, surrogates, private use and
unassigned code points (Unicode categories C*), separators other than the plain space (Z*), selectors and fillers that
are letters by category and blank by look. The form is a backslash and `u{202e}`;
a JSON document uses JSON's own four digits.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, cast

# Blank or attached to their neighbour, though their category says letter, mark or symbol.
_BLANK = frozenset(
    "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0"
    + "".join(map(chr, range(0xFE00, 0xFE10)))
    + "".join(map(chr, range(0xE0100, 0xE01F0)))
)
_NOT_ASCII = re.compile(r"[^\x20-\x7e]")
SHOWN = 2_000  # characters of one argument's value before it is cut, visibly


def is_unsafe(character: str) -> bool:
    """Whether a character has to be escaped to be seen."""
    if " " <= character <= "~":
        return False
    return unicodedata.category(character)[0] in "CZ" or character in _BLANK


def safe(text: str, *, lines: bool = False) -> str:
    """The text with everything invisible written out. lines: line feeds stay line feeds (and tabs become spaces)."""

    def shown(match: re.Match[str]) -> str:
        character = match[0]
        if lines and character == "\n":
            return character
        if lines and character == "\t":
            return "    "
        return f"\\u{{{ord(character):x}}}" if is_unsafe(character) else character

    return _NOT_ASCII.sub(shown, text)


def safe_json(document: str) -> str:
    """A JSON document that means the same and holds nothing invisible but its own line feeds."""

    def shown(match: re.Match[str]) -> str:
        character = match[0]
        if character == "\n" or not is_unsafe(character):
            return character
        units = character.encode("utf-16-be", "surrogatepass")
        return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))

    return _NOT_ASCII.sub(shown, document)


def rendered(value: Any, *, cut: int = SHOWN) -> list[str]:
    """A JSON value as indented lines, one member each, safe to print.

    cut: strings longer than this are cut, and say how much is missing. Line feeds inside strings are written as
    in JSON, so that no value can pretend to be another member.
    """
    return _lines(value, "", cut)


def _lines(value: Any, indent: str, cut: int) -> list[str]:
    if isinstance(value, Mapping) and value:
        members = cast("Mapping[str, Any]", value)
        return _block("{", "}", [(f"{_string(key, cut)}: ", member) for key, member in members.items()], indent, cut)
    if isinstance(value, Sequence) and not isinstance(value, str) and value:
        return _block("[", "]", [("", item) for item in cast("Sequence[Any]", value)], indent, cut)
    return [_string(value, cut) if isinstance(value, str) else json.dumps(value)]


def _block(begin: str, end: str, members: list[tuple[str, Any]], indent: str, cut: int) -> list[str]:
    lines: list[str] = [begin]
    for number, (name, member) in enumerate(members, 1):
        first, *rest = _lines(member, indent + "  ", cut)
        lines += [f"{indent}  {name}{first}", *rest]
        if number < len(members):
            lines[-1] += ","
    return [*lines, indent + end]


def _string(text: str, cut: int) -> str:
    shown = safe(json.dumps(text[:cut], ensure_ascii=False))
    return shown if len(text) <= cut else f"{shown} … and {len(text) - cut} more characters"
