"""How long each page of the console takes on a large database: the first answer, and the median of the next ones.

    python -m tests.bench.console [FOLDER]

A broker is opened on FOLDER, which is filled first when it is empty (CALLS calls and HELD that wait), and three people
look: one who oversees a tenant with a third of everything, one who may only decide on some of its holds, and one whose
tenant has nothing, for whom there is most to look through in vain. Before each first answer the kernel is told to
forget the database, so that it comes from the disk. It ends with 1 when a first answer takes longer than LIMIT_MS.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import sys
import time
from pathlib import Path

import anyio
import httpx2

from broker.model.invocation import InvocationQuery
from tests.bench.seed import seed
from tests.premises import PASSWORD, House, house_with

FOLDER = Path(".bench") / "pages"
CALLS, HELD = 1_000_000, 1_000
LIMIT_MS = 300
MORE = 4
MANIFEST = "kind: backend\nname: orders\nstatic: {}\n"
PEOPLE = {"overseer": ("acme", ["broker.review"]), "reviewer": ("acme", ["refunds.review"]), "newcomer": ("none", ["broker.review"])}  # fmt: skip # noqa: E501


async def sign_in(http: httpx2.AsyncClient, url: str, name: str) -> None:
    page = await http.get("/console")
    fields = dict(re.findall(r'name="(csrf|request)" value="([^"]*)"', page.text))
    form = {"name": name, "password": PASSWORD, **{key: value.replace("&amp;", "&") for key, value in fields.items()}}
    await http.post("/oauth/sign-in", data=form, headers={"Origin": url})


async def pages(house: House, tenant: str) -> list[str]:
    some = await house.broker.store.invocations(InvocationQuery(tenant=tenant, limit=1))
    held = await house.broker.store.queue(InvocationQuery(within=tenant, limit=1))
    return [
        "",
        "?agent=agent-03",
        *(f"?after={one.call_id}" for one in held),
        *(f"/holds/{one.call_id}" for one in held),
        "/calls",
        "/calls?state=failed",
        "/calls?tool=orders_find&user=user-07",
        "/calls?agent=agent-03&code=over_quota",
        "/calls?backend=crm&rule=crm%2Flarge",
        "/calls?user=nobody",
        "/calls.json",
        "/calls.csv",
        *(f"/calls/{one.call_id}" for one in some),
        "/grants",
        "/grants?ended=1",
        "/catalog",
        "/catalog?as=agent-00",
        "/quotas",
        "/agents",
        "/backends",
        "/insight",
        "/insight?span=day",
        "/insight?span=month",
        "/record",
        "/me",
    ]


def forgotten(database: Path) -> None:
    """The kernel keeps nothing of the database in memory but what SQLite has mapped (its index of the log)."""
    for path in (database, database.with_name(database.name + "-wal")):
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


async def timed(http: httpx2.AsyncClient, path: str) -> tuple[float, httpx2.Response]:
    began = time.perf_counter()
    answer = await http.get(path)
    return (time.perf_counter() - began) * 1000, answer


async def measure(folder: Path) -> int:
    slow = 0
    async with house_with(folder, MANIFEST) as house:
        for name, (tenant, scopes) in PEOPLE.items():
            if house.broker.directory.account(name) is None:
                house.person(name, scopes, tenant=tenant)
            async with httpx2.AsyncClient(
                base_url=house.url, trust_env=False, timeout=60, follow_redirects=True
            ) as http:
                await sign_in(http, house.url, name)
                for path in await pages(house, tenant):
                    forgotten(folder / "broker.db")
                    asked = [await timed(http, f"/console{path}") for _ in range(1 + MORE)]
                    took, answer = [ms for ms, _ in asked], asked[0][1]
                    shown = re.sub(r"[0-9a-f-]{36}", "…", path) or "/"
                    first, then = took[0], statistics.median(took[1:])
                    mark = "  SLOW" if first > LIMIT_MS else ""
                    slow += first > LIMIT_MS
                    figures = f"{first:8.0f} ms {then:8.0f} ms {len(answer.content):9,} bytes"
                    print(f"{name:9} {shown:38} {answer.status_code} {figures}{mark}")
    return 1 if slow else 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Time the console's pages on a large database.")
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER)
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "broker.db").exists():
        print(f"Writing {CALLS:,} calls to {folder}: this takes some minutes, once.", flush=True)
        seed(folder / "broker.db", CALLS, held=HELD)
    return anyio.run(measure, folder)


if __name__ == "__main__":
    sys.exit(main())
