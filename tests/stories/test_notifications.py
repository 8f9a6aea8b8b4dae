"""Who is told of held calls: a real receiver on a real port, which verifies what it is sent, fails, and comes back."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from time import time
from typing import Any

import anyio
import pytest
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response

from broker import assembly
from broker.errors import SettingsError
from broker.notifiers.webhook import key_of
from broker.pipeline import notices
from broker.settings import NotifyTo
from broker.verifier import verify
from tests.downstream import answering
from tests.premises import House, house_with
from tests.stories.test_call import TOOLS
from tests.stories.test_console import browsing, sign_in
from tests.world import until_state

pytestmark = pytest.mark.anyio

SECRET = "whsec_" + base64.b64encode(b"a-secret-of-more-than-24-bytes").decode()


@dataclass
class Receiver:
    """Keeps what it is sent and could verify; answers with the statuses it is given first, then 204."""

    answers: list[int] = field(default_factory=list[int])
    got: list[Any] = field(default_factory=list[Any])
    refused: int = 0

    async def __call__(self, request: Request) -> Response:
        body = await request.body()
        if self.answers:
            self.refused += 1
            return Response(status_code=self.answers.pop(0))
        if "webhook-id" in request.headers:
            assert is_ours(request, body)
        self.got.append(json.loads(body))
        return Response(status_code=204)

    async def until(self, number: int) -> list[Any]:
        with anyio.fail_after(15):
            while len(self.got) < number:
                await anyio.sleep(0.05)
        return self.got


def is_ours(request: Request, body: bytes) -> bool:
    """Written from the documentation: how a receiver verifies."""
    notice_id, timestamp = request.headers["webhook-id"], request.headers["webhook-timestamp"]
    key = base64.b64decode(SECRET.removeprefix("whsec_"))
    expected = hmac.new(key, f"{notice_id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    given = request.headers["webhook-signature"].removeprefix("v1,")
    return hmac.compare_digest(base64.b64decode(given), expected) and abs(time() - int(timestamp)) < 300


@asynccontextmanager
async def house_that_tells(folder: Path, receiver: Receiver, **keys: Any) -> AsyncGenerator[House]:
    async with answering(receiver) as (url, _):
        to = {"name": "desk", "url": url, "secret": SECRET, "events": ["held", "decided", "expired"], **keys}
        async with house_with(folder, TOOLS, notify=[to]) as house:
            await anyio.sleep(0.3)  # a new receiver hears of what comes after it
            yield house


async def noted(house: House, kind: str) -> list[Any]:
    found = await house.broker.store.entries_after(0, [kind], 100)
    return [event.body for event in found.events]


async def test_a_held_call_and_its_decision_are_told_signed_and_recorded(tmp_path: Path) -> None:
    receiver = Receiver()
    async with house_that_tells(tmp_path, receiver) as house:
        house.person("rita")
        hold_id = await house.held()
        (held,) = await receiver.until(1)
        assert held["type"] == "hold.held"
        data = held["data"]
        assert (data["call_id"], data["tool"], data["agent"], data["user"]) == (hold_id, "note_write", "bot", "ann")
        assert (data["rule"], data["reason"]) == ("writes/large", "large amounts need a person")
        assert data["link"] == f"{house.url}/console/holds/{hold_id}"
        assert "500" not in json.dumps(data["reason"]) and "arguments" not in data
        await house.post(f"/api/holds/{hold_id}/deny", "rita", {"reason": "too much"})
        decided = (await receiver.until(2))[1]
        assert decided["type"] == "hold.decided"
        assert (decided["data"]["decision"], decided["data"]["review_reason"]) == ("denied", "too much")
        assert decided["data"]["reviewer"].startswith("rita@")
        with anyio.fail_after(5):
            while len(await noted(house, "notified")) < 2:
                await anyio.sleep(0.05)
        assert [one["notice"] for one in await noted(house, "notified")] == [held["id"], decided["id"]]


ESCALATING = TOOLS.replace("hold, ", "hold, expires: 4h, escalate: {after: 1h, reviewers: {groups: [board]}}, ")


async def test_who_else_may_decide_and_that_time_is_nearly_over_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assembly, "SWEEP_EVERY_S", 0.05)
    receiver, testing = Receiver(), {"clock_file": "now"}
    async with answering(receiver) as (url, _):
        to = {"name": "desk", "url": url, "secret": SECRET}
        async with house_with(tmp_path, ESCALATING, notify=[to], testing=testing) as house:
            house.person("rita")
            await anyio.sleep(0.3)
            hold_id = await house.held()
            await receiver.until(1)
            (tmp_path / "now").write_text("+3600")
            await receiver.until(2)
            (tmp_path / "now").write_text(f"+{4 * 3600 - 47 * 60}")  # the last fifth of four hours
            told = await receiver.until(3)
            assert [one["type"] for one in told] == ["hold.held", "hold.escalated", "hold.expiring"]
            assert {one["data"]["state"] for one in told} == {"held"}
            link = told[1]["data"]["link"]
            async with browsing(house) as http:  # the link opens the hold, through signing in
                page = await sign_in(http, house, "rita", link.removeprefix(house.url))
                assert (str(page.url), "Approve: run note_write now" in page.text) == (link, True)
            (tmp_path / "now").write_text("+14400")
            await until_state(house.broker, hold_id, "expired")
            await anyio.sleep(0.3)
    assert len(receiver.got) == 3
    assert verify(tmp_path / "broker.db").fault is None


async def test_what_was_decided_in_time_is_not_said_to_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembly, "SWEEP_EVERY_S", 0.05)
    receiver, testing = Receiver(), {"clock_file": "now"}
    async with answering(receiver) as (url, _):
        to = {"name": "desk", "url": url, "secret": SECRET}
        async with house_with(tmp_path, ESCALATING, notify=[to], testing=testing) as house:
            house.person("rita")
            await anyio.sleep(0.3)
            hold_id = await house.held()
            await house.post(f"/api/holds/{hold_id}/deny", "rita", {"reason": "no"})
            await receiver.until(1)
            (tmp_path / "now").write_text("+14000")
            await anyio.sleep(0.5)
            assert [one["type"] for one in receiver.got] == ["hold.held"]
            assert await noted(house, "escalation") == await noted(house, "expiring") == []


async def test_arguments_are_told_only_where_it_is_declared(tmp_path: Path) -> None:
    receiver = Receiver()
    async with house_that_tells(tmp_path, receiver, arguments=True) as house:
        await house.held()
        (held,) = await receiver.until(1)
        assert held["data"]["arguments"] == {"amount": 500}


async def test_a_receiver_that_fails_is_tried_again_under_the_same_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "FIRST_PAUSE_S", 0.05)
    receiver = Receiver(answers=[500, 503, 302])
    async with house_that_tells(tmp_path, receiver) as house:
        await house.held()
        await receiver.until(1)
        with anyio.fail_after(5):
            while not await noted(house, "notified"):
                await anyio.sleep(0.05)
        assert (await noted(house, "notified"))[0]["tries"] == 4
    assert receiver.refused == 3


async def test_what_a_receiver_never_takes_is_given_up_on_record_and_holds_up_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "FIRST_PAUSE_S", 0.01)
    receiver = Receiver(answers=[422] * notices.TRIES_FOR_GOOD)
    async with house_that_tells(tmp_path, receiver) as house:
        first = await house.held()
        second = await house.held(arguments={"amount": 501})
        (told,) = await receiver.until(1)
        assert told["data"]["call_id"] == second
        (failed,) = await noted(house, "notice_failed")
        assert (failed["call_id"], failed["why"], failed["to"]) == (first, "HTTP 422", "desk")


async def test_what_was_held_while_nobody_served_is_told_at_the_next_start(tmp_path: Path) -> None:
    receiver = Receiver(answers=[500] * 1000)
    async with house_that_tells(tmp_path, receiver) as house:
        hold_id = await house.held()
        with anyio.fail_after(5):
            while not receiver.refused:
                await anyio.sleep(0.05)
    receiver.answers.clear()
    async with house_that_tells(tmp_path, receiver):
        (held,) = await receiver.until(1)
        assert held["data"]["call_id"] == hold_id


async def test_a_receiver_that_hangs_delays_no_call(tmp_path: Path) -> None:
    class Hanging(Receiver):
        async def __call__(self, request: Request) -> Response:
            await anyio.sleep(30)
            return Response()

    async with house_that_tells(tmp_path, Hanging()) as house:
        with anyio.fail_after(5):
            for amount in range(500, 505):
                await house.held(arguments={"amount": amount})


@pytest.mark.filterwarnings("ignore::DeprecationWarning:apprise.*", "ignore:'imghdr' is deprecated")
@pytest.mark.skipif(find_spec("apprise") is None, reason="apprise is not installed (extra notify)")
async def test_apprise_tells_what_it_knows_to_tell(tmp_path: Path) -> None:
    receiver = Receiver()
    async with answering(receiver) as (url, _):
        to = {"name": "team", "via": "apprise", "url": url.replace("http://", "json://")}
        async with house_with(tmp_path, TOOLS, notify=[to]) as house:
            await anyio.sleep(0.3)
            hold_id = await house.held()
            (told,) = await receiver.until(1)
    assert told["title"] == "note_write by bot for ann waits for a decision"
    assert told["message"].splitlines()[0] == "Because: large amounts need a person (rule writes/large)"
    assert told["message"].endswith(f"/console/holds/{hold_id}")


@pytest.mark.parametrize(
    "keys",
    [
        {"url": "http://hooks.example/x", "secret": SECRET},
        {"url": "http://127.0.0.1.evil.example/", "secret": SECRET},
        {"url": "https://hooks.example/x", "secret": "short"},
        {"url": "https://hooks.example/x"},
        {"url": "https://hooks.example/x", "secret": SECRET, "events": []},
    ],
)
def test_a_receiver_that_is_not_safe_is_refused_with_the_settings(keys: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        NotifyTo(name="desk", **keys)


def test_a_secret_is_never_in_what_is_said_of_it(tmp_path: Path) -> None:
    from tests.world import settings_in

    with pytest.raises(SettingsError) as told:
        settings_in(tmp_path, TOOLS, notify=[{"name": "a", "url": "https://h.example", "secret": "hunter2"}])
    assert "hunter2" not in str(told.value)
    with pytest.raises(ValueError, match="not base64") as wrong:
        key_of("whsec_!!hunter2!!")
    assert "hunter2" not in str(wrong.value)
