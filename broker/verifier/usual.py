"""The usual call, opened by one entry and closed by the next: its record held against the text of the two.

Almost all of a history is such calls, and reading their JSON was most of the time a verification took. Instead SQLite
puts together, from the columns of the record, the very text that the two bodies must have; only the laps, of which each
has a part, are read. How such bodies look is learned from a call that was read and found right. What does not agree to
the byte proves nothing: it is read then, and judged column by column (`records.py`).
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any

from jiter import from_json

_LAPS, _NO_LAPS = b'"laps_us":', b'"laps_us":null'
_QUOTAS, _NO_QUOTAS = b'"quotas":', b'"quotas":null'
_KEPT = b'{"kept":"'
_DIGEST_BYTES = len("sha256:") + 64
_APART = frozenset({"laps_us", "quotas"})  # not part of what SQLite puts together: null stands in their place
_CLOSED = frozenset({"succeeded", "failed"})


class Usual:
    """columns: of the table of records. sql: what `agrees` needs of a row of it, as expressions."""

    def __init__(self, columns: Iterable[str]) -> None:
        self._columns = frozenset(columns) - {"id"}
        self._texts = "null, null"

    @property
    def sql(self) -> str:
        return f"{self._texts}, cast(i.quotas as blob), i.laps_us, i.state, i.changed_at_ms"

    def learn(self, opening: dict[str, Any], closing: dict[str, Any]) -> bool:
        """The bodies of a call that was read and found right: others will look like them. Whether that is news."""
        first, last = opening["set"], closing["set"]
        if not opening.keys() <= {"kept", "set"} or closing.keys() != {"set"}:
            return False
        if first.keys() | last.keys() | {"quotas"} != self._columns:
            return False
        known, self._texts = self._texts, f"{_text({**first, 'quotas': []}, last)}, {_text(last)}"
        return self._texts != known

    def agrees(self, row: tuple[Any, ...], opening: bytes, closing: bytes, at_ms: int) -> tuple[bool, str | None]:
        """Whether the call is over and these bodies, the last of this time, say exactly what its record holds; and the
        digest of what was kept of the arguments, None for nothing. row: made by `sql`.
        """
        first, last, quotas, laps, state, changed = row
        if first is None or state not in _CLOSED or changed != at_ms:
            return False, None
        kept = None
        if opening.startswith(_KEPT):
            end = len(_KEPT) + _DIGEST_BYTES
            kept, opening = opening[len(_KEPT) : end].decode(), b"{" + opening[end + len('",') :]
        first = first.replace(*((_NO_QUOTAS + b",", b"") if quotas == b"[]" else (_NO_QUOTAS, _QUOTAS + quotas)), 1)
        before, after = _laps(opening, first), _laps(closing, last)
        try:
            agrees = bool(before and after) and {**from_json(before), **from_json(after)} == from_json(laps.encode())
        except (TypeError, ValueError):
            agrees = False
        return agrees, kept


def _laps(body: bytes, expected: bytes) -> bytes:
    """What a body says of the laps, when it has the expected text around them."""
    head, _, tail = expected.partition(_NO_LAPS)
    begin, end = len(head) + len(_LAPS), len(body) - len(tail)
    return (
        body[begin:end] if body.startswith(head) and body.startswith(_LAPS, len(head)) and body.endswith(tail) else b""
    )


def _text(said: dict[str, Any], later: Container[str] = ()) -> str:
    """SQL for the body with this `set`. later: keys on which another entry has the last word; they stay as they are."""
    members = ", ".join(f"'{name}', {_value(name, said[name], later)}" for name in sorted(said))
    return f"cast(json_object('set', json_object({members})) as blob)"


def _value(name: str, value: Any, later: Container[str]) -> str:
    if name in _APART:
        return "null"
    if name not in later:
        return 'i."at_ms"' if name == "changed_at_ms" else f'i."{name}"'
    return str(value) if isinstance(value, int) else "'" + str(value).replace("'", "''") + "'"
