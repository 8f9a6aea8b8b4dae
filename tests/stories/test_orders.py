"""The example order service keeps its own promises, since the demo and other stories prove theirs by it."""

from __future__ import annotations

from pathlib import Path

import httpx2
import pytest

from examples.orders.app import make_app
from examples.orders.book import Book

pytestmark = pytest.mark.anyio


def service(folder: Path, token: str = "right") -> httpx2.AsyncClient:
    transport = httpx2.ASGITransport(app=make_app(Book(folder / "orders.db"), "right"))
    return httpx2.AsyncClient(
        transport=transport, base_url="http://orders", headers={"Authorization": f"Bearer {token}"}
    )


async def refund(orders: httpx2.AsyncClient, order_id: str, amount: object, key: str = "k1") -> httpx2.Response:
    headers = {"Idempotency-Key": key, "X-Broker-Call-Id": f"call-{key}"} if key else {}
    return await orders.post(f"/orders/{order_id}/refunds", json={"amount": amount, "reason": "test"}, headers=headers)


async def test_orders_are_listed_narrowed_and_read(tmp_path: Path) -> None:
    async with service(tmp_path) as orders:
        assert len((await orders.get("/orders")).json()["orders"]) == 6
        paid = (await orders.get("/orders", params={"status": "paid"})).json()["orders"]
        assert [order["id"] for order in paid] == ["1003", "1005"]
        assert (await orders.get("/orders/1002")).json()["total"] == 249.0
        assert (await orders.get("/orders/9")).status_code == 404
        assert (await orders.get("/orders", params={"limit": "x"})).status_code == 400


async def test_a_refund_happens_once_per_key_and_every_request_is_logged(tmp_path: Path) -> None:
    async with service(tmp_path) as orders:
        first, again, other = [await refund(orders, "1002", 20, key) for key in ("k1", "k1", "k2")]
        assert (first.status_code, again.status_code, other.status_code) == (201, 200, 201)
        assert first.json() == again.json() != other.json()
        assert (await orders.get("/orders/1002")).json()["refunded"] == 40.0
        log = (await orders.get("/refund-log")).json()["requests"]
        assert [(one["call_id"], one["outcome"]) for one in log] == [
            ("call-k1", "refunded"),
            ("call-k1", "repeated"),
            ("call-k2", "refunded"),
        ]


@pytest.mark.parametrize(
    ("order_id", "amount", "key", "status"),
    [
        ("1002", 249.01, "k1", 409),
        ("9999", 1, "k1", 404),
        ("1002", 0, "k1", 400),
        ("1002", -1, "k1", 400),
        ("1002", 0.001, "k1", 400),
        ("1002", True, "k1", 400),
        ("1002", "20", "k1", 400),
        ("1002", 20, "", 400),
        ("1002", 249, "k1", 201),
    ],
)
async def test_a_refund_that_cannot_be_is_refused(
    tmp_path: Path, order_id: str, amount: object, key: str, status: int
) -> None:
    async with service(tmp_path) as orders:
        assert (await refund(orders, order_id, amount, key)).status_code == status


async def test_a_key_is_not_used_for_two_refunds(tmp_path: Path) -> None:
    async with service(tmp_path) as orders:
        assert (await refund(orders, "1002", 20)).status_code == 201
        assert (await refund(orders, "1002", 21)).status_code == 422
        assert (await refund(orders, "1004", 20)).status_code == 422


async def test_an_order_is_cancelled_until_it_is_shipped(tmp_path: Path) -> None:
    async with service(tmp_path) as orders:
        assert (await orders.post("/orders/1003/cancel")).json()["status"] == "cancelled"
        assert (await orders.post("/orders/1003/cancel")).status_code == 200
        assert (await orders.post("/orders/1002/cancel")).status_code == 409


async def test_without_its_own_credential_nothing_but_health_answers(tmp_path: Path) -> None:
    async with service(tmp_path, token="wrong") as orders:
        assert (await orders.get("/health")).status_code == 200
        assert (await orders.get("/orders")).status_code == 401
        assert (await refund(orders, "1002", 20)).status_code == 401
