"""What an intent says by `as`: the columns that an earlier intent of its chain says in full.

Those are looked up where they lie, be it in another part of the history: that one walks over them, and judges whether
they are what was written.
"""

from __future__ import annotations

import sqlite3
from typing import Any

from jiter import from_json

KNOWN = 4096  # entries, and pairs of them, of which each takes up to 1 kB

CALLER = ("face", "agent", "user", "tenant", "issuer", "principal_key", "credential_id")
CALLED = ("tool", "tool_version", "tool_effect", "definition", "backend", "rule", "policy_version", "record", "writer",
          "state", "effect")  # fmt: skip
_ENTRY = "select kind, cast(body as blob) from entry where chain = ? and seq = ?"

Pair = tuple[int, tuple[Any, ...]]
"""(the higher seq of the two entries, the values of CALLER and of CALLED without `state` and `effect`)"""


class Said:
    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._pairs: dict[tuple[str, bytes], Pair] = {}
        self._known: dict[tuple[str, int, tuple[str, ...]], dict[str, Any]] = {}

    def pair(self, chain: str, named: bytes) -> Pair:
        """What an intent says by naming two others, `<seq>,<seq>` of its chain. Raises ValueError."""
        known = self._pairs.get((chain, named))
        if known is None:
            caller, called = map(int, named.split(b","))
            values = (*self.columns(chain, caller, CALLER).values(), *self.columns(chain, called, CALLED).values())[:-2]
            if len(self._pairs) == KNOWN:
                self._pairs.clear()
            known = self._pairs[chain, named] = max(caller, called), values
        return known

    def columns(self, chain: str, seq: int, names: tuple[str, ...]) -> dict[str, Any]:
        """These columns as the intent there says them itself; not to be changed. Raises ValueError."""
        known = self._known.get((chain, seq, names))
        if known is None:
            kind, body = self._db.execute(_ENTRY, (chain, seq)).fetchone() or ("", b"")
            said: dict[str, Any] = from_json(body)["set"] if kind == "intent" else {}
            if not said.keys() >= set(names):
                raise ValueError(f"entry {seq} is no intent that says `{names[0]}`")
            if len(self._known) == KNOWN:
                self._known.clear()
            known = self._known[chain, seq, names] = {name: said[name] for name in names}
        return known
