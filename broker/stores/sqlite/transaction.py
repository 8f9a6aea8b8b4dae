"""What a job of the writer works with, and the one statement by which an invocation changes its state."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, TypeVar

from orjson import Fragment

from broker.data import dataclass, field
from broker.errors import BrokerError
from broker.model.canonical import canonical
from broker.model.invocation import TRANSITIONS, State
from broker.stores.sqlite.context import Context
from broker.stores.sqlite.ledger import Ledger
from broker.stores.sqlite.rows import Rows
from broker.stores.sqlite.seal import Seal

T = TypeVar("T")


class Undo(Exception):
    """A job finds, after it has written something, that it must refuse: what it wrote is undone, then it answers so."""

    def __init__(self, answer: BrokerError) -> None:
        super().__init__(answer.message)
        self.answer = answer


@dataclass(slots=True)
class Transaction:
    """The open transaction of a batch. Jobs are functions of it and one argument, and have no other effect: a job may
    be run a second time after everything it did was rolled back.

    urgent: set by a job that changed a hold; who waits for one is woken at the commit.
    """

    rows: Rows
    ledger: Ledger
    seal: Seal
    open_per_agent: int
    urgent: bool = False
    context: Context = field(default_factory=Context)

    @property
    def db(self) -> sqlite3.Connection:
        """To read from and to write to, with all that was put off written. Raises Spoiled."""
        return self.rows.db

    def back_to(self, mark: tuple[int, bytes]) -> None:
        """What was done since the ledger stood there (`Ledger.mark`) is rolled back in the database."""
        self.ledger.back_to(mark)
        self.context.forget()


# The columns of an invocation that change after its first row, beside its state and the time.
_CHANGING = frozenset(
    {
        "arguments_digest",
        "writer",
        "code",
        "stage",
        "message",
        "effect",
        "backend_status",
        "result_digest",
        "result_bytes",
        "laps_us",
    }
)


def _sources(target: State) -> str:
    """The states a call may be in to get to this one, as SQL; from the one table of the life cycle."""
    return ", ".join(f"'{state}'" for state, nexts in TRANSITIONS.items() if target in nexts and state != "received")


@lru_cache(maxsize=128)
def _advance(target: State, columns: tuple[str, ...], *, all_laps: bool) -> str:
    """The compare-and-set into a state that changes these columns. Names and states are constants of ours; every value
    is bound."""
    if target in ("received", "denied") or not _CHANGING.issuperset(columns):
        raise ValueError(f"no call gets to {target} later, or changes so")
    laps = "?" if all_laps else "json_patch(laps_us, ?)"
    changes = "".join(f", {column} = {laps if column == 'laps_us' else '?'}" for column in columns)
    return (
        f"update invocation set state = '{target}', changed_at_ms = ?{changes}"  # noqa: S608
        f" where call_id = ? and state in ({_sources(target)})"
    )


def advance(
    tx: Transaction,
    call_id: str,
    target: State,
    *,
    at_ms: int,
    kind: str,
    change: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
    all_laps: bool = False,
) -> bool:
    """Bring a call into a state, if the life cycle allows it from where it is, with the entry that says so.

    change: further columns of the invocation (of _CHANGING, and laps_us, which is merged unless these are all_laps).
    facts: what the entry's body says beside `set`. False when the call is not in a state that leads there; nothing is
    written then.
    """
    columns = dict(change or {})
    # An outcome says it all: what it does not mention is empty.
    said = {name: value for name, value in columns.items() if value or kind != "outcome"}
    if "laps_us" in columns:
        columns["laps_us"] = laps = canonical(columns["laps_us"]).decode()
        if "laps_us" in said:
            said["laps_us"] = Fragment(laps)
    sql = _advance(target, tuple(columns), all_laps=all_laps)
    tx.rows.begin_call(call_id)
    if not tx.rows.put(sql, (at_ms, *columns.values(), call_id)):
        return False
    said["state"] = target
    tx.ledger.append(kind, call_id, at_ms, {**(facts or {}), "set": said})
    return True
