"""Calls in the forms other systems read: CSV for spreadsheets, CEF for SIEMs, Parquet for analysis. JSON lines are the
documents of `words.as_document`.

COLUMNS is what CSV and Parquet have, one fact a column; whoever needs more takes the JSON lines. A cell of CSV that a
spreadsheet would take for a formula is written with an apostrophe before it, since its text may be an attacker's.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

import orjson

from broker import __version__
from broker.errors import Refusal
from broker.model.invocation import Invocation

COLUMNS: Mapping[str, Callable[[Invocation], Any]] = {
    "at": lambda one: datetime.fromtimestamp(one.at_ms / 1000, UTC),
    "call_id": lambda one: one.call_id,
    "state": lambda one: one.state,
    "effect": lambda one: one.effect,
    "tenant": lambda one: one.tenant,
    "agent": lambda one: one.agent,
    "user": lambda one: one.user,
    "issuer": lambda one: one.issuer,
    "face": lambda one: one.face,
    "tool": lambda one: one.tool,
    "tool_version": lambda one: one.tool_version,
    "tool_effect": lambda one: one.tool_effect,
    "backend": lambda one: one.backend,
    "backend_status": lambda one: one.backend_status,
    "rule": lambda one: one.rule,
    "code": lambda one: one.code,
    "stage": lambda one: one.stage,
    "message": lambda one: one.message,
    "hold_reason": lambda one: one.hold.reason if one.hold else "",
    "reviewer": lambda one: one.hold.reviewer if one.hold else "",
    "review_reason": lambda one: one.hold.review_reason if one.hold else "",
    "duration_ms": lambda one: one.duration_ms,
    "dispatch_ms": lambda one: one.laps_us.get("dispatch", 0) / 1000,
    "result_bytes": lambda one: one.result_bytes,
    "result_digest": lambda one: one.result_digest,
    "arguments_digest": lambda one: one.arguments_digest,
    "arguments": lambda one: "" if one.kept is None else orjson.dumps(one.kept).decode(),
    "policy_version": lambda one: one.policy_version,
    "request_id": lambda one: one.request_id,
    "trace_id": lambda one: one.trace_id,
}
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # the wide ones are folded by some programs


def csv_lines(calls: Iterable[Invocation], *, heading: bool) -> Iterator[str]:
    """RFC 4180: lines end with CR LF, since a bare CR in a cell is quoted only then."""
    text = io.StringIO()
    writer = csv.writer(text)
    if heading:
        writer.writerow(COLUMNS)
    for one in calls:
        writer.writerow([_cell(read(one)) for read in COLUMNS.values()])
    yield text.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds")
    if isinstance(value, str):
        value = value.replace("\0", "\ufffd")
        return f"'{value}" if value.lstrip(" ").startswith(_FORMULA) else value
    return value


# ----------------------------------------------------------------------------------------------------------------- CEF

_SEVERITY = {"succeeded": 1, "approved": 2, "dispatching": 2, "held": 3, "withdrawn": 3, "expired": 4, "failed": 5,
             "denied": 6, "rejected": 6, "outcome_unknown": 8}  # fmt: skip


def cef_line(one: Invocation) -> str:
    """Common Event Format 0 (ArcSight's guide, revision 26): one line, whatever stands in its fields."""
    extension: dict[str, Any] = {
        "rt": one.at_ms,
        "externalId": one.call_id,
        "act": one.state,
        "outcome": one.effect,
        "suser": one.user,
        "sourceServiceName": one.agent,
        "destinationServiceName": one.backend,
        "app": one.face,
        "reason": one.code,
        "msg": one.message,
        "cs1Label": "tool", "cs1": one.tool,
        "cs2Label": "rule", "cs2": one.rule,
        "cs3Label": "tenant", "cs3": one.tenant,
        "cs4Label": "reviewer", "cs4": one.hold.reviewer if one.hold else "",
        "cs5Label": "argumentsDigest", "cs5": one.arguments_digest,
        "cn1Label": "durationMs", "cn1": round(one.duration_ms),
    }  # fmt: skip
    header = ("CEF:0", "broker", "broker", __version__, one.code or one.state, f"{one.tool} {one.state}",
              str(_SEVERITY[one.state]))  # fmt: skip
    told = " ".join(f"{key}={_value(str(value))}" for key, value in extension.items() if value != "")
    return f"{'|'.join([header[0], *(_field(part) for part in header[1:])])}|{told}"


def _field(text: str) -> str:
    return _flat(text).replace("\\", "\\\\").replace("|", "\\|")


def _value(text: str) -> str:
    return text.replace("\\", "\\\\").replace("=", "\\=").replace("\r", "\\r").replace("\n", "\\n").replace("\0", " ")


def _flat(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)


# ------------------------------------------------------------------------------------------------------------- Parquet

_TYPES = {"at": "timestamp", "duration_ms": "float", "dispatch_ms": "float", "result_bytes": "int"}


class ParquetFile:
    """A file of these columns, written page by page. Raises Refusal when the extra is not installed."""

    def __init__(self, path: Path) -> None:
        try:
            self._arrow: Any = import_module("pyarrow")
            parquet: Any = import_module("pyarrow.parquet")
        except ImportError as error:
            raise Refusal(
                "Parquet needs pyarrow, which is not installed.", next_step="Run `pip install 'broker[parquet]'`."
            ) from error
        arrow = self._arrow
        kinds = {"timestamp": arrow.timestamp("ms", tz="UTC"), "float": arrow.float64(), "int": arrow.int64()}
        fields = [(name, kinds[_TYPES[name]] if name in _TYPES else arrow.string()) for name in COLUMNS]
        self._schema = arrow.schema(fields)
        self._writer = parquet.ParquetWriter(str(path), self._schema, compression="zstd")

    def write(self, calls: Sequence[Invocation]) -> None:
        columns = {name: [read(one) for one in calls] for name, read in COLUMNS.items()}
        self._writer.write_table(self._arrow.table(columns, schema=self._schema))

    def close(self) -> None:
        self._writer.close()
