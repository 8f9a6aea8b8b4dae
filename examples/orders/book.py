"""Orders and refunds in one SQLite file, and a log of every refund request that arrived, repeats included.

The log is what makes the example worth watching: whoever wants to know how often a call really reached this service
asks it, not the one who sent the call. Amounts are whole cents inside; HTTP never comes in here.

Why a connection per use: requests run on several threads, and a file this small opens in microseconds.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TABLES = """
CREATE TABLE IF NOT EXISTS orders (
    id TEXT PRIMARY KEY, customer TEXT NOT NULL, item TEXT NOT NULL, total_cents INTEGER NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('paid', 'shipped', 'cancelled'))
);
CREATE TABLE IF NOT EXISTS refunds (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, order_id TEXT NOT NULL REFERENCES orders (id),
    amount_cents INTEGER NOT NULL, reason TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS refund_log (
    seq INTEGER PRIMARY KEY, key TEXT NOT NULL, call_id TEXT NOT NULL, order_id TEXT NOT NULL,
    amount_cents INTEGER NOT NULL, outcome TEXT NOT NULL
);
"""

SEED = (
    ("1001", "Ada Brandt", "Desk lamp", 3_900, "shipped"),
    ("1002", "Ben Okafor", "Office chair", 24_900, "shipped"),
    ("1003", "Chloé Martin", "Notebook, 5 pieces", 1_750, "paid"),
    ("1004", "Deniz Kaya", "Standing desk", 51_900, "shipped"),
    ("1005", "Ada Brandt", "Cable tray", 2_250, "paid"),
    ("1006", "Emil Larsen", "Monitor arm", 8_900, "cancelled"),
)


class BookError(Exception):
    """What was asked for cannot be. status: the HTTP status that says it best."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Book:
    """The orders in one file; made and seeded on first use."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._write() as db:
            for statement in TABLES.split(";"):
                db.execute(statement)
            if db.execute("SELECT count(*) FROM orders").fetchone()[0] == 0:
                db.executemany("INSERT INTO orders VALUES (?, ?, ?, ?, ?)", SEED)

    @contextmanager
    def _write(self) -> Generator[sqlite3.Connection]:
        """One transaction: all of it, or nothing when an exception leaves the block."""
        db = sqlite3.connect(self._path, isolation_level=None, timeout=10)
        db.row_factory = sqlite3.Row
        try:
            db.execute("BEGIN IMMEDIATE")
            yield db
            db.execute("COMMIT")
        finally:
            db.close()  # an open transaction ends here, undone

    def orders(self, *, customer: str = "", status: str = "", limit: int = 50) -> list[dict[str, Any]]:
        with self._write() as db:
            rows = db.execute(
                "SELECT * FROM orders WHERE :customer IN ('', customer) AND :status IN ('', status)"
                " ORDER BY id LIMIT :limit",
                {"customer": customer, "status": status, "limit": limit},
            ).fetchall()
            return [_order(db, row) for row in rows]

    def order(self, order_id: str) -> dict[str, Any]:
        """Raises BookError 404."""
        with self._write() as db:
            return _order(db, _find(db, order_id))

    def cancel(self, order_id: str) -> dict[str, Any]:
        """From paid to cancelled; twice is the same as once. Raises BookError 404, or 409 once it is shipped."""
        with self._write() as db:
            if _find(db, order_id)["status"] == "shipped":
                raise BookError(409, f"Order {order_id} is shipped and can no longer be cancelled.")
            db.execute("UPDATE orders SET status = 'cancelled' WHERE id = ?", (order_id,))
            return _order(db, _find(db, order_id))

    def refund(
        self, order_id: str, amount_cents: int, *, reason: str, key: str, call_id: str
    ) -> tuple[dict[str, Any], bool]:
        """Refund once per key. Returns the refund and whether it is new.

        Raises BookError: 404 for no such order, 409 when more would be refunded than was paid, 422 when the key was
        used for another refund. Every request is logged, whatever comes of it.
        """
        try:
            refund, new = self._refund(order_id, amount_cents, reason, key)
        except BookError as error:
            self._log(key, call_id, order_id, amount_cents, f"refused {error.status}")
            raise
        self._log(key, call_id, order_id, amount_cents, "refunded" if new else "repeated")
        return refund, new

    def _refund(self, order_id: str, amount_cents: int, reason: str, key: str) -> tuple[dict[str, Any], bool]:
        with self._write() as db:
            earlier = db.execute("SELECT * FROM refunds WHERE key = ?", (key,)).fetchone()
            if earlier is not None:
                if (earlier["order_id"], earlier["amount_cents"]) != (order_id, amount_cents):
                    raise BookError(422, "This Idempotency-Key was used for another refund.")
                return _refund(earlier), False
            order = _order(db, _find(db, order_id))
            if amount_cents > cents(order["total"]) - cents(order["refunded"]):
                raise BookError(
                    409, f"Order {order_id} was paid {order['total']}; {order['refunded']} is refunded already."
                )
            row = db.execute(
                "INSERT INTO refunds (key, order_id, amount_cents, reason) VALUES (?, ?, ?, ?) RETURNING *",
                (key, order_id, amount_cents, reason),
            ).fetchone()
            return _refund(row), True

    def _log(self, key: str, call_id: str, order_id: str, amount_cents: int, outcome: str) -> None:
        with self._write() as db:
            db.execute(
                "INSERT INTO refund_log (key, call_id, order_id, amount_cents, outcome) VALUES (?, ?, ?, ?, ?)",
                (key, call_id, order_id, amount_cents, outcome),
            )

    def log(self) -> list[dict[str, Any]]:
        """Every refund request that ever arrived, oldest first."""
        with self._write() as db:
            return [
                {**dict(row), "amount": row["amount_cents"] / 100}
                for row in db.execute("SELECT * FROM refund_log ORDER BY seq")
            ]


def cents(amount: float) -> int:
    return round(amount * 100)


def _find(db: sqlite3.Connection, order_id: str) -> sqlite3.Row:
    row = db.execute("SELECT * FROM orders WHERE id = ?", (order_id,)).fetchone()
    if row is None:
        raise BookError(404, f"There is no order {order_id}.")
    return row


def _order(db: sqlite3.Connection, row: sqlite3.Row) -> dict[str, Any]:
    refunded = db.execute(
        "SELECT coalesce(sum(amount_cents), 0) FROM refunds WHERE order_id = ?", (row["id"],)
    ).fetchone()[0]
    return {
        "id": row["id"],
        "customer": row["customer"],
        "item": row["item"],
        "total": row["total_cents"] / 100,
        "refunded": refunded / 100,
        "status": row["status"],
    }


def _refund(row: sqlite3.Row) -> dict[str, Any]:
    return {"id": row["id"], "order_id": row["order_id"], "amount": row["amount_cents"] / 100, "reason": row["reason"]}
