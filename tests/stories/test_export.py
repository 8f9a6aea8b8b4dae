"""Records for other systems: each form read back by a reader of its own, and a continuous export that is killed."""

from __future__ import annotations

import base64
import csv
import hashlib
import hmac
import io
import json
import os
import re
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import Response

from broker.faces.formats import COLUMNS, cef_line, csv_lines
from broker.model.invocation import Invocation
from broker.stores.sqlite import queries
from broker.stores.sqlite.database import connect
from tests.bench.seed import seed
from tests.command import broker, environment, running
from tests.downstream import answering

CALLS = 300
SECRET = "a-secret-of-more-than-24-bytes"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    seed(tmp_path / "broker.db", CALLS, held=2, days=10)
    (tmp_path / "broker.yaml").write_text("watch: false\n")
    (tmp_path / "siem.secret").write_text(SECRET)
    return tmp_path


@pytest.fixture(scope="module")
def a_call(tmp_path_factory: pytest.TempPathFactory) -> Invocation:
    path = tmp_path_factory.mktemp("one") / "broker.db"
    seed(path, 10)
    with closing(connect(path)) as db:
        db.row_factory = None
        return queries.some(db, queries.InvocationQuery(limit=1))[0]


def entries(home: Path, where: str = "1") -> list[tuple[str, str]]:
    """Name and kind of the entries, in their order."""
    with closing(connect(home / "broker.db", read_only=True)) as db:
        rows = db.execute(f"select chain || '.' || seq, kind from entry where {where} order by id")
        return [tuple(row) for row in rows]


# --------------------------------------------------------------------------------------------------------- the forms


def test_csv_has_a_line_for_each_call_and_is_read_back(home: Path) -> None:
    said = broker("export", "--format", "csv", "--output", "calls.csv", cwd=home)
    assert said.err == f"{CALLS + 2} calls in calls.csv.\n"
    assert (home / "calls.csv").stat().st_mode & 0o777 == 0o600
    rows = list(csv.DictReader(io.StringIO((home / "calls.csv").read_text(), newline="")))
    assert len(rows) == CALLS + 2 and list(rows[0]) == list(COLUMNS)
    lines = broker("export", cwd=home).out.splitlines()
    assert [row["call_id"] for row in rows] == [json.loads(line)["call_id"] for line in lines]
    assert entries(home, "kind = 'export'") != []


@given(st.text(max_size=40), st.sampled_from(["", "=", "@SUM(1)", "+1", "-1", "\t=", " =cmd|' /C calc'!A0", "＝1"]))
def test_no_cell_is_a_formula_and_every_text_comes_back(a_call: Invocation, text: str, begin: str) -> None:
    call = replace(a_call, agent=begin + text, message=text)
    (written,) = csv_lines([call], heading=True)
    ((heading, row),) = [list(csv.reader(io.StringIO(written, newline="")))]
    cells = dict(zip(heading, row, strict=True))
    for cell in cells.values():
        assert not re.match(r"\s*[=+\-@＝＋－＠]", cell)
    assert cells["agent"].removeprefix("'") == (begin + text).replace("\0", "\ufffd").removeprefix("'")


@given(st.text(max_size=60))
def test_a_line_of_cef_stays_one_line_with_its_fields(a_call: Invocation, text: str) -> None:
    line = cef_line(replace(a_call, tool=text, message=text, code=text))
    assert "\n" not in line and "\r" not in line
    header = re.split(r"(?<!\\)(?:\\\\)*\|", line, maxsplit=7)
    assert header[:3] == ["CEF:0", "broker", "broker"]
    assert re.search(rf"(?:^| )externalId={a_call.call_id} ", line.split("|")[-1] if "|" not in text else line)


@pytest.mark.skipif(find_spec("pyarrow") is None, reason="pyarrow is not installed (extra parquet)")
def test_parquet_is_typed_and_whole(home: Path) -> None:
    parquet: Any = import_module("pyarrow.parquet")
    said = broker("export", "--format", "parquet", "--output", "calls.parquet", cwd=home)
    assert said.code == 0, said.err
    table: Any = parquet.read_table(home / "calls.parquet")
    assert table.num_rows == CALLS + 2 and table.column_names == list(COLUMNS)
    assert str(table.schema.field("at").type) == "timestamp[ms, tz=UTC]"
    assert broker("export", "--format", "parquet", cwd=home).code == 2


# ----------------------------------------------------------------------------------------------------- continuously


@dataclass
class Receiver:
    """Verifies each batch and keeps it. fails: how many it refuses first. hangs: it takes a batch and never says so."""

    got: list[Any] = field(default_factory=list[Any])
    batches: int = 0
    hangs: bool = False
    fails: int = 0

    async def __call__(self, request: Request) -> Response:
        body = await request.body()
        name, timestamp = request.headers["webhook-id"], request.headers["webhook-timestamp"]
        mac = hmac.new(SECRET.encode(), f"{name}.{timestamp}.".encode() + body, hashlib.sha256).digest()
        assert request.headers["webhook-signature"] == "v1," + base64.b64encode(mac).decode()
        if self.fails:
            self.fails -= 1
            return Response(status_code=503)
        document = json.loads(body)
        assert document["id"] == document["data"][-1]["event"] == name
        self.got += document["data"]
        self.batches += 1
        if self.hangs:
            await anyio.sleep(30)
        return Response(status_code=204)

    async def until(self, name: str) -> None:
        with anyio.fail_after(40):
            while not any(one["event"] == name for one in self.got):
                await anyio.sleep(0.05)


@asynccontextmanager
async def following(home: Path, url: str, *more: str) -> AsyncGenerator[Any]:
    words = (
        "export",
        "--follow",
        "--name",
        "siem",
        "--from-first",
        "--webhook",
        url,
        "--secret",
        "${file:siem.secret}",
    )
    with running(*words, *more, cwd=home) as process:
        yield process


@pytest.mark.anyio
async def test_an_export_that_is_killed_skips_nothing_and_repeats_under_the_same_names(home: Path) -> None:
    receiver = Receiver(fails=1)
    first = [name for name, _ in entries(home)]
    async with answering(receiver) as (url, _):
        for batches in (1, 2):  # killed after the receiver took a batch and before it could say so
            receiver.hangs, receiver.batches = True, 0
            async with following(home, url) as process:
                with anyio.fail_after(40):
                    while receiver.batches < 1:
                        await anyio.sleep(0.05)
                receiver.hangs = batches == 1
                process.send_signal(signal.SIGKILL)
                process.wait()
        receiver.hangs = False
        async with following(home, url):
            await receiver.until(first[-1])
    told = [one["event"] for one in receiver.got if one["event"] in set(first)]
    assert list(dict.fromkeys(told)) == first
    assert len(told) > len(first)
    kept: dict[str, Any] = {}
    for one in receiver.got:
        assert kept.setdefault(one["event"], one) == one


@pytest.mark.anyio
async def test_one_name_goes_on_where_it_stood_and_one_process_at_a_time(home: Path) -> None:
    receiver = Receiver()
    last = entries(home)[-1][0]
    async with answering(receiver) as (url, _):
        async with following(home, url):
            await receiver.until(last)
        number = len(receiver.got)
        assert broker("export", cwd=home).code == 0  # recorded, so there is news
        news = entries(home, "kind = 'export' and body like '%jsonl%' and body not like '%follow%'")[-1][0]
        async with following(home, url) as process:
            await receiver.until(news)
            second = broker_briefly(home, url)
            assert "Another process has the place of siem" in second
            assert process.poll() is None
    again = {one["event"] for one in receiver.got[:number]} & {one["event"] for one in receiver.got[number:]}
    assert not again


def broker_briefly(home: Path, url: str) -> str:
    """What a second one says within two seconds."""
    import subprocess
    import sys

    words = ["export", "--follow", "--name", "siem", "--webhook", url, "--secret", "${file:siem.secret}"]
    with subprocess.Popen(
        [sys.executable, "-m", "broker", *words], cwd=home, env=environment(home), stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        os.kill(process.pid, signal.SIGTERM)
        return line


@pytest.mark.anyio
async def test_logs_by_otlp_name_each_entry(home: Path) -> None:
    got: list[Any] = []

    async def collect(request: Request) -> Response:
        got.append(json.loads(await request.body()))
        return Response(b"{}", media_type="application/json")

    async with answering(collect) as (url, _):
        with running("export", "--follow", "--from-first", "--otlp", f"{url}/v1/logs", cwd=home):
            with anyio.fail_after(30):
                while sum(len(logs(one)) for one in got) < 200:
                    await anyio.sleep(0.05)
    records = [record for one in got for record in logs(one)]
    ids = [attribute(record, "broker.event.id") for record in records]
    assert ids[:200] == [name for name, _ in entries(home)][:200]
    spoken = [record for record in records if attribute(record, "broker.call.id")]
    assert all(re.fullmatch(r"[0-9a-f]{32}", record["traceId"]) for record in spoken)


def logs(request: Any) -> list[Any]:
    return request["resourceLogs"][0]["scopeLogs"][0]["logRecords"]


def attribute(record: Any, name: str) -> str:
    return next((one["value"]["stringValue"] for one in record["attributes"] if one["key"] == name), "")


@pytest.mark.parametrize(
    "words",
    [("--follow", "--since", "1d"), ("--webhook", "http://x"), ("--follow", "--format", "parquet"),
     ("--follow", "--webhook", "http://x", "--otlp", "http://y"), ("--format", "parquet")],
)  # fmt: skip
def test_what_does_not_go_together_is_said(home: Path, words: tuple[str, ...]) -> None:
    assert broker("export", *words, cwd=home).code == 2


def test_a_secret_that_is_none_ends_it_without_saying_it(home: Path) -> None:
    said = broker("export", "--follow", "--webhook", "http://127.0.0.1:1", "--secret", "hunter2", cwd=home)
    assert said.code == 2 and "24 bytes" in said.err and "hunter2" not in said.err
