"""What an intent says by `as`: the columns that an earlier intent of its chain says in full.

Those entries are looked up when they are needed first, wherever they are: another part of the history walks over them,
and judges whether they are what was written.
"""

from __future__ import annotations

import sqlite3
from typing import Any

from jiter import from_json

KNOWN = 4096  # pairs of a caller and what it calls, of which each takes about 1.5 kB

_GROUPS = (
    ("face", "agent", "user", "tenant", "issuer", "principal_key", "credential_id"),
    ("tool", "tool_version", "tool_effect", "definition", "backend", "rule", "policy_version", "record", "writer",
     "state", "effect"),
)  # fmt: skip
_ENTRY = "select kind, cast(body as blob) from entry where chain = ? and seq = ?"


class Said:
    """fresh: all columns of a record, empty."""

    def __init__(self, db: sqlite3.Connection, fresh: dict[str, Any]) -> None:
        self._db = db
        self._fresh = fresh
        self._known: dict[tuple[str, int, int], dict[str, Any]] = {}

    def by(self, chain: str, seq: int, named: list[int]) -> dict[str, Any]:
        """All columns, with those that this entry says by naming these two; not to be changed. Raises ValueError."""
        caller, called = named
        known = self._known.get((chain, caller, called))
        if known is None:
            known = {**self._fresh}
            for number, names in zip(named, _GROUPS, strict=True):
                if number:
                    known |= self._columns(chain, number, names)
            if len(self._known) == KNOWN:
                self._known.clear()
            self._known[chain, caller, called] = known
        if not (0 <= caller < seq and 0 <= called < seq):
            raise ValueError(f"`as` names {named}, which do not come before it")
        return known

    def _columns(self, chain: str, seq: int, names: tuple[str, ...]) -> dict[str, Any]:
        kind, body = self._db.execute(_ENTRY, (chain, seq)).fetchone() or ("", b"")
        said: dict[str, Any] = from_json(body)["set"] if kind == "intent" else {}
        if not said.keys() >= set(names):
            raise ValueError(f"`as` names entry {seq}, which is no intent that says `{names[0]}`")
        return {name: said[name] for name in names}
