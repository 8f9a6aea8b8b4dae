"""What many calls share, looked up once: what an intent says by `as`, and what a record names by `caller` and `called`.

An intent that others name is looked up where it lies, be it in another part of the history: that one walks over it, and
judges whether it is what was written.
"""

from __future__ import annotations

import sqlite3
from typing import Any

from jiter import from_json

KNOWN = 4096  # entries, and pairs of them, of which each takes up to 1 kB

CALLER = ("face", "agent", "user", "tenant", "issuer", "principal_key", "credential_id")
CALLED = ("tool", "tool_version", "tool_effect", "definition", "backend", "rule", "policy_version", "record", "writer",
          "state", "effect")  # fmt: skip
SHARED = ("face", "issuer", "principal_key", "tool_version", "tool_effect", "definition", "backend", "policy_version",
          "record")  # fmt: skip
OWN = ("agent", "user", "tenant", "credential_id", "tool", "rule", "writer")  # the others, in a record itself
_SHARED = """select p.face, p.issuer, p.principal_key, t.tool_version, t.tool_effect, t.definition, t.backend,
    t.policy_version, t.record from caller p, called t where p.id = ? and t.id = ?"""
_ENTRY = "select kind, cast(body as blob) from entry where chain = ? and seq = ?"

Pair = tuple[int, tuple[Any, ...]]
"""(the higher seq of the two entries, the values of OWN)"""


def text_of(db: sqlite3.Connection, sql: str, values: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """One row; None where there is none, or one with a text that is not UTF-8."""
    try:
        return db.execute(sql, values).fetchone()
    except sqlite3.OperationalError as error:
        if is_no_text(error):
            return None
        raise


def is_no_text(error: sqlite3.OperationalError) -> bool:
    """Whether a text was not UTF-8: the module's own error, so it has no code of the library's."""
    return getattr(error, "sqlite_errorcode", None) is None


class Said:
    """named: rows of `caller` and `called` that some record named, as (table, id)."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._pairs: dict[tuple[str, str, int, int], Pair] = {}
        self._shared: dict[tuple[int, int], tuple[Any, ...]] = {}
        self.named = set[tuple[str, int]]()
        self._known: dict[tuple[str, int, tuple[str, ...]], dict[str, Any]] = {}

    def pair(self, chain: str, named: str, caller: int, called: int) -> Pair:
        """What an intent says by naming two others, `<seq>,<seq>` of its chain, where its record names this caller and
        this called, and they agree. Raises ValueError."""
        key = chain, named, caller, called
        known = self._pairs.get(key)
        if known is None:
            first, second = map(int, named.split(","))
            says = self.columns(chain, first, CALLER) | self.columns(chain, second, CALLED)
            if tuple(says[name] for name in SHARED) != self.shared(caller, called):
                raise ValueError("it names others than its record")
            if len(self._pairs) == KNOWN:
                self._pairs.clear()
            known = self._pairs[key] = max(first, second), tuple(says[name] for name in OWN)
        return known

    def shared(self, caller: int, called: int) -> tuple[Any, ...]:
        """The values of SHARED that a record has by these ids; () where there are none such."""
        known = self._shared.get((caller, called))
        if known is None:
            self.named |= {("caller", caller), ("called", called)}
            if len(self._shared) == KNOWN:
                self._shared.clear()
            known = self._shared[caller, called] = text_of(self._db, _SHARED, (caller, called)) or ()
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
