"""What every kind of backend promises (ports.Backend), over the table BACKENDS. A new kind is one row in SAMPLES."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from broker.backends import BACKENDS
from broker.backends.mcp import Remote
from broker.backends.static import KIND as STATIC
from broker.backends.static import Action as StaticAction
from broker.errors import TimedOut, Unavailable
from broker.model.sketch import Sketch
from broker.model.tool import Tool
from broker.ports import Backend, BackendKind
from tests.downstream import House, a_call, answering, ask, house, http_tool, kind_of, opened, text_of, tool_with

pytestmark = pytest.mark.anyio
PEER = str(Path(__file__).parents[1] / "stdio_peer.py")


@dataclass(frozen=True, slots=True)
class Sample:
    """A backend that works: its manifest section, a tool that answers and one that never does (None: there is none)."""

    spec: Mapping[str, Any]
    answers: Tool
    hangs: Tool | None = None


@asynccontextmanager
async def http_sample(folder: Path) -> AsyncGenerator[Sample]:
    async def answer(request: Request) -> Response:
        if request.url.path == "/hang":
            await anyio.sleep(30)
        return JSONResponse({"fine": True})

    async with answering(answer) as (url, _):
        tool = http_tool({"method": "GET", "path": "/"})
        slow = http_tool({"method": "GET", "path": "/hang"}, timeout_s=1)
        yield Sample({"base_url": url, "allow_private": True}, tool, slow)


@asynccontextmanager
async def mcp_sample(folder: Path) -> AsyncGenerator[Sample]:
    command = [sys.executable, "-I", "-S", PEER, str(folder / "log")]
    yield Sample({"command": command}, tool_with(Remote("echo")), tool_with(Remote("hang"), timeout_s=1))


@asynccontextmanager
async def static_sample(folder: Path) -> AsyncGenerator[Sample]:
    yield Sample({}, tool_with(STATIC.compile(StaticAction(text="fine"), {}, ())))


SAMPLES: Mapping[str, Callable[[Path], AbstractAsyncContextManager[Sample]]] = {
    "http": http_sample,
    "mcp": mcp_sample,
    "static": static_sample,
}


@dataclass(frozen=True, slots=True)
class Stand:
    where: House
    kind: BackendKind
    sample: Sample

    def opened(self) -> AbstractAsyncContextManager[Backend]:
        return opened(self.where, self.kind.name, self.sample.spec)


@pytest.fixture(params=sorted(BACKENDS))
async def stand(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Stand]:
    kind = str(request.param)
    async with house(str(tmp_path)) as where, SAMPLES[kind](tmp_path) as sample:
        yield Stand(where, kind_of(kind), sample)


async def test_the_row_is_a_kind_under_its_own_name(stand: Stand) -> None:
    assert BACKENDS[stand.kind.name]
    assert stand.kind.Spec.model_json_schema()["additionalProperties"] is False
    assert stand.kind.Action is None or stand.kind.Action.model_json_schema()["additionalProperties"] is False


async def test_unknown_keys_of_a_manifest_are_refused(stand: Stand) -> None:
    stand.kind.Spec.model_validate(stand.sample.spec)
    with pytest.raises(ValueError, match="verify_nothing"):
        stand.kind.Spec.model_validate({**stand.sample.spec, "verify_nothing": True})


async def test_it_is_starting_then_up_then_answers(stand: Stand) -> None:
    backend = stand.kind.build("orders", stand.kind.Spec.model_validate(stand.sample.spec), stand.where)
    assert (backend.name, backend.kind, backend.health.state) == ("orders", stand.kind.name, "starting")
    await backend.open()
    await stand.where.until_settled(backend)
    assert backend.health.state == "up"
    assert text_of(await ask(backend, stand.sample.answers))
    await backend.aclose()
    assert backend.health.state == "down"


async def test_it_shows_beforehand_what_it_would_send_and_the_same_each_time(stand: Stand) -> None:
    backend = stand.kind.build("orders", stand.kind.Spec.model_validate(stand.sample.spec), stand.where)
    closed = backend.sketch(stand.sample.answers, {}, a_call())
    async with stand.opened() as opened_one:
        shown = opened_one.sketch(stand.sample.answers, {}, a_call())
        await ask(opened_one, stand.sample.answers)
        assert opened_one.sketch(stand.sample.answers, {}, a_call()) == shown == closed
    assert shown.method
    assert shown.target
    assert Sketch.unpack(shown.packed()) == shown


async def test_many_calls_at_once_are_answered(stand: Stand) -> None:
    got: list[str] = []

    async def one(backend: Backend) -> None:
        got.append(text_of(await ask(backend, stand.sample.answers)))

    async with stand.opened() as backend, anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(one, backend)
    assert len(got) == 20


async def test_a_call_before_opening_or_after_closing_is_unavailable_and_nothing_happened(stand: Stand) -> None:
    backend = stand.kind.build("orders", stand.kind.Spec.model_validate(stand.sample.spec), stand.where)
    with pytest.raises(Unavailable):
        await ask(backend, stand.sample.answers)
    await backend.open()
    await backend.aclose()
    with pytest.raises(Unavailable) as error:
        await ask(backend, stand.sample.answers)
    assert error.value.effect == "none"


async def test_closing_twice_or_without_opening_is_harmless(stand: Stand) -> None:
    for opens in (True, False):
        backend = stand.kind.build("orders", stand.kind.Spec.model_validate(stand.sample.spec), stand.where)
        if opens:
            await backend.open()
        await backend.aclose()
        await backend.aclose()
        assert backend.health.state == "down"


async def test_the_tools_deadline_is_kept(stand: Stand) -> None:
    if stand.sample.hangs is None:
        pytest.skip("nothing of this kind can hang")
    async with stand.opened() as backend:
        await stand.where.until_settled(backend)
        with pytest.raises(TimedOut) as error:
            await ask(backend, stand.sample.hangs)
        assert error.value.effect == "unknown"
        assert text_of(await ask(backend, stand.sample.answers))


async def test_a_caller_that_goes_away_ends_its_call_only(stand: Stand) -> None:
    if stand.sample.hangs is None:
        pytest.skip("nothing of this kind can hang")
    async with stand.opened() as backend:
        await stand.where.until_settled(backend)
        with anyio.move_on_after(0.05) as gone:
            await backend.call(stand.sample.hangs, {}, a_call())
        assert gone.cancelled_caught
        assert text_of(await ask(backend, stand.sample.answers))


async def test_closing_lets_a_running_call_end(stand: Stand) -> None:
    got: list[str] = []

    async def one(backend: Backend) -> None:
        got.append(text_of(await ask(backend, stand.sample.answers)))

    async with anyio.create_task_group() as tasks, stand.opened() as backend:
        await stand.where.until_settled(backend)
        tasks.start_soon(one, backend)
        await anyio.sleep(0)  # it has begun
    assert len(got) == 1
