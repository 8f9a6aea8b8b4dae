"""SIGTERM under load: who has a call under way gets its answer, who comes later a clear refusal, and nothing is lost.

A request that meets a connection just being closed gets neither, as in any HTTP/1.1; then nothing was done.

One round here; fifty with `make test-crash`. The oracle is the backend's own ledger: what arrived there was done.
"""

from __future__ import annotations

import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import anyio
import orjson

from broker.model.invocation import Invocation, InvocationQuery
from tests.crashing import Serving, house
from tests.ledger import Ledger, ledger_backend
from tests.records import open_store
from tests.serving import modern_call, modern_headers
from tests.stories.test_fault import MANIFESTS, SETTINGS

ROUNDS = 50 if os.environ.get("BROKER_TEST_CRASH") == "all" else 1
CALLERS = 16
BUSY = 50  # calls that were made when it is told to end
ENDS_S = 10.0


@dataclass
class Caller:
    """One client on one connection, as fast as it is answered, until it is told that there is no more."""

    serving: Serving
    name: str
    done: list[str] = field(default_factory=list[str])  # what it was told is done, by its text
    refused: str = ""  # why the last one was not
    cut: str = ""  # the last one, when nothing was answered

    def run(self) -> None:
        headers = modern_headers("tools/call", "work", token=self.serving.credential)
        connection = HTTPConnection("127.0.0.1", self.serving.port, timeout=30)
        text = ""
        try:
            while not self.refused:
                text = f"{self.name}-{len(self.done)}"
                connection.request("POST", "/mcp", orjson.dumps(modern_call("work", {"text": text})), headers)
                answer = connection.getresponse()
                self.told(text, answer.status, orjson.loads(answer.read()))
        except (HTTPException, OSError):
            self.cut = text
        finally:
            connection.close()

    def told(self, text: str, status: int, said: dict[str, Any]) -> None:
        if status != 200:
            self.refused = f"{status} {said}"
        elif said["result"]["isError"]:
            self.refused = said["result"]["structuredContent"]["code"]
        else:
            self.done.append(text)


def test_every_call_ends_in_an_answer_or_a_refusal_and_in_its_record(tmp_path: Path) -> None:
    with ledger_backend() as ledger:
        ledger.on_receipt = lambda: time.sleep(random.random() / 20)
        manifests = MANIFESTS.replace("PORT", str(ledger.server_port)).replace("limit: 1000", "limit: 1000000")
        credential = house(tmp_path / "house", manifests, SETTINGS)
        for number in range(ROUNDS):
            one_round(Serving(tmp_path / "house", credential), ledger, number)


def one_round(serving: Serving, ledger: Ledger, number: int) -> None:
    assert serving.start()
    ledger.received.clear()
    callers = [Caller(serving, f"{number}.{one}") for one in range(CALLERS)]
    try:
        with ThreadPoolExecutor(CALLERS) as threads:
            for caller in callers:
                threads.submit(caller.run)
            while len(ledger.received) < BUSY:
                time.sleep(0.01)
            time.sleep(random.random() / 5)
            began = time.monotonic()
            assert serving.stop() == 0
            assert time.monotonic() - began < ENDS_S
    finally:
        serving.kill()
    calls = {
        one.kept["text"]: one for one in anyio.run(records, serving.folder) if one.kept["text"].startswith(f"{number}.")
    }
    done = [text for caller in callers for text in caller.done]
    assert {one.state for one in calls.values()} == {"succeeded"}
    assert sorted(calls) == sorted(done), "no call was done that nobody was told of"
    assert sorted(ledger.received) == sorted(one.call_id for one in calls.values())
    for caller in callers:
        assert "shutting down" in caller.refused or caller.cut, caller
        assert caller.cut not in calls, "a connection that was closed at rest brought no call"


async def records(folder: Path) -> list[Invocation]:
    store = await open_store(folder)
    try:
        return await store.invocations(InvocationQuery(limit=100_000))
    finally:
        await store.aclose()
