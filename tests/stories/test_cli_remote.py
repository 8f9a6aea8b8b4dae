"""`broker login`, and the commands that then ask a broker on another machine, through the real commands and a browser
that posts forms."""

from __future__ import annotations

import re
import stat
from collections.abc import AsyncGenerator
from html import unescape
from pathlib import Path
from typing import Any

import anyio
import httpx2
import orjson
import pytest
from anyio import to_thread

from broker.faces.cli import sign_in
from broker.faces.cli.logins import FILE
from tests.command import Said, broker, running
from tests.premises import PASSWORD, House, house_with
from tests.stories.test_call import QUOTA, TOOLS
from tests.world import until_state

pytestmark = pytest.mark.anyio


@pytest.fixture
async def house(tmp_path: Path) -> AsyncGenerator[House]:
    (tmp_path / "there").mkdir()
    async with house_with(tmp_path / "there", TOOLS + QUOTA) as house:
        house.person("rita")
        yield house


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A machine of its own: no settings, no records."""
    (tmp_path / "here").mkdir()
    return tmp_path / "here"


async def say(*words: str, at: Path, stdin: str = "") -> Said:
    return await to_thread.run_sync(lambda: broker(*words, cwd=at, stdin=stdin))


def field(page: str, name: str) -> str:
    found = re.search(rf'name="{name}" value="([^"]*)"', page)
    assert found, page
    return unescape(found[1])


async def through_browser(house: House, address: str, decision: str = "allow") -> str:
    """Sign in as rita and answer; where the browser is sent in the end."""
    async with httpx2.AsyncClient(base_url=house.url, trust_env=False) as browser:
        page = (await browser.get(address.removeprefix(house.url))).text
        asked = {name: field(page, name) for name in ("csrf", "request")}
        signed = await browser.post("/oauth/sign-in", data={**asked, "name": "rita", "password": PASSWORD})
        consent = (await browser.get(signed.headers["location"])).text
        assert "broker command line" in consent
        asked = {name: field(consent, name) for name in ("csrf", "request")}
        answer = await browser.post("/oauth/authorize", data={**asked, "decision": decision})
        return answer.headers["location"]


async def login(house: House, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The flow itself in this process, with the address that the browser ended at pasted."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(here / ".config"))
    seen: list[str] = []

    def paste(address: str) -> str:
        return anyio.from_thread.run(through_browser, house, address)

    found = await to_thread.run_sync(
        lambda: sign_in.sign_in(sign_in.base_url(house.url), client_id="", show=seen.append, paste=paste)
    )
    from broker.faces.cli import logins

    logins.keep(found)
    assert seen[0].startswith(f"{house.url}/oauth/authorize?")


async def test_a_person_signs_in_with_a_browser_that_comes_back_by_itself(house: House, here: Path) -> None:
    with running("login", house.url, cwd=here, env={"BROWSER": "true"}) as command:
        assert command.stderr is not None
        said = ""
        while "/oauth/authorize?" not in said:
            said = await to_thread.run_sync(command.stderr.readline)
        back = await through_browser(house, said.strip())
        async with httpx2.AsyncClient(trust_env=False) as browser:
            forged = await browser.get(f"{back.partition('?')[0]}?code=x&state=y")  # some other page's attempt
            assert forged.status_code == 200
            await browser.get(back)
        out, _ = await to_thread.run_sync(command.communicate)
        assert command.returncode == 0
        assert out.startswith(f"Signed in at {house.url}")
    kept = here / ".config" / "broker" / FILE
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert [one["agent"] for one in (await say("holds", "--broker", house.url, "--json", at=here)).json] == []


async def test_what_a_reviewer_does_on_the_machine_itself_works_from_afar(
    house: House, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await login(house, here, monkeypatch)
    there = ["--broker", house.url]
    first, second = await house.held(), await house.held(arguments={"amount": 501})
    shown = await say("holds", *there, at=here)
    assert shown.code == 0, shown.err
    assert first in shown.out
    assert '"amount": 500' in shown.out or "500" in shown.out
    approved = await say("approve", first, *there, at=here)
    assert (approved.code, approved.out.split(":")[0]) == (0, "Approved and done"), approved.err
    await until_state(house.broker, first, "succeeded")
    denied = await say("deny", second[-8:], "--reason", "too much", *there, at=here)
    assert (denied.code, denied.out.split(":")[0]) == (0, "Denied"), denied.err
    again = await say("deny", second, "--reason", "still", *there, at=here)
    assert again.code == 1
    assert "rita" in again.err
    states = {one["call_id"]: one["state"] for one in (await say("log", "--json", *there, at=here)).json}
    assert (states[first], states[second]) == ("succeeded", "rejected")
    one = await say("log", first, *there, at=here)
    assert f"rita@{house.url}" in one.out
    assert {one["quota"] for one in (await say("quotas", "--json", *there, at=here)).json} == {"two-writes"}
    assert "note_write" in (await say("tools", *there, at=here)).out


async def test_a_token_that_ended_is_renewed_and_a_sign_in_that_ended_says_so(
    house: House, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await login(house, here, monkeypatch)
    kept = here / ".config" / "broker" / FILE

    def changed(**fields: Any) -> dict[str, Any]:
        logins: dict[str, Any] = orjson.loads(kept.read_bytes())
        logins[house.url] |= fields
        kept.write_bytes(orjson.dumps(logins))
        return logins[house.url]

    old = changed(expires_at_s=1)
    assert (await say("holds", "--broker", house.url, at=here)).code == 0
    assert changed()["refresh_token"] != old["refresh_token"]
    changed(access_token="x.y.z")  # not known there, whatever the reason: renewed as well
    assert (await say("holds", "--broker", house.url, at=here)).code == 0
    changed(access_token="x.y.z", refresh_token="")
    ended = await say("holds", "--broker", house.url, at=here)
    assert ended.code == 1
    assert f"broker login {house.url}" in ended.err


async def test_signing_out_ends_the_sign_in_there_and_here(
    house: House, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await login(house, here, monkeypatch)
    kept = orjson.loads((here / ".config" / "broker" / FILE).read_bytes())[house.url]
    assert (await say("logout", house.url, at=here)).code == 0
    nobody = await say("holds", "--broker", house.url, at=here)
    assert (nobody.code, "not signed in" in nobody.err) == (1, True)
    form = {"grant_type": "refresh_token", "client_id": kept["client_id"], "refresh_token": kept["refresh_token"]}
    assert (await house.http.post("/oauth/token", data=form)).status_code == 400


async def test_a_person_who_says_no_is_not_signed_in(house: House, here: Path) -> None:
    with running("login", house.url, "--no-browser", cwd=here) as command:
        assert command.stderr is not None
        said = ""
        while "/oauth/authorize?" not in said:
            said = await to_thread.run_sync(command.stderr.readline)
        back = await through_browser(house, said.strip(), "deny")
        assert "error=access_denied" in back
    assert not (here / ".config" / "broker" / FILE).exists()


@pytest.mark.parametrize(
    "url", ["http://broker.example", "ftp://broker.example", "https://broker.example/x", "https://a@b"]
)
async def test_a_url_that_is_no_brokers_is_refused_before_anything_is_sent(url: str, here: Path) -> None:
    refused = await say("login", url, at=here)
    assert refused.code == 1
    assert "not https" in refused.err or "no" in refused.err
