"""What an operator asks the records, in one line each, and what the answer looks like."""

from __future__ import annotations

import datetime
from importlib import import_module
from pathlib import Path
from typing import Any

import orjson
import pytest

from broker.faces.cli import COMMANDS
from broker.faces.cli.app import built_command
from tests.bench.seed import seed
from tests.command import Said, broker

CALLS = 1_000


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A broker with a thousand calls of the last ten days."""
    home = tmp_path_factory.mktemp("home")
    seed(home / "broker.db", CALLS, held=3, days=10)
    (home / "broker.yaml").write_text("watch: false\n")
    return home


def asked(home: Path, *words: str) -> Said:
    said = broker("log", *words, cwd=home)
    assert said.code == 0, said.err
    return said


def test_what_this_agent_did_for_this_user_yesterday(home: Path) -> None:
    words = ("--agent", "agent-01", "--user", "user-07", "--since", "yesterday", "--until", "today")
    found = asked(home, *words, "--json").json
    midnight = datetime.datetime.now().astimezone().replace(hour=0, minute=0, second=0, microsecond=0)
    begin, end = ((midnight - datetime.timedelta(days=days)).timestamp() * 1000 for days in (1, 0))
    everything = asked(home, "--limit", "100000", "--json").json
    expected = [one for one in everything if (one["agent"], one["user"]) == ("agent-01", "user-07")]
    assert found == [one for one in expected if begin <= one["at_ms"] < end] != []


def test_every_refund_above_a_hundred_and_who_approved_it(home: Path) -> None:
    found = asked(home, "--tool", "orders_refund", "--where", "args.amount > 100", "--limit", "1000", "--json").json
    assert found
    assert all(one["kept"]["amount"] > 100 and one["tool"] == "orders_refund" for one in found)
    few = asked(home, "--tool", "orders_refund", "--limit", "1000", "--json").json
    assert len(found) == len([one for one in few if one["kept"] and one["kept"]["amount"] > 100])
    approved = [one for one in asked(home, "--limit", "1000", "--json").json if one["hold"] and one["hold"]["reviewer"]]
    assert f"approved by {approved[0]['hold']['reviewer']}" in asked(home, "--limit", "1000").out


def test_what_was_refused_and_by_which_rule(home: Path) -> None:
    found = asked(home, "--state", "denied", "--by", "rule", "--json").json
    denied = asked(home, "--state", "denied", "--limit", "1000", "--json").json
    assert {one["rule"]: one["refused"] for one in found} == {
        rule: sum(one["rule"] == rule for one in denied) for rule in {one["rule"] for one in denied}
    }
    table = asked(home, "--state", "denied", "--by", "rule").out.splitlines()
    assert table[0].split() == ["RULE", "CALLS", "REFUSED", "FAILED", "UNKNOWN", "MEAN", "SLOWEST", "COST"]


def test_the_slowest_backends_and_what_cost_most(home: Path) -> None:
    slow = asked(home, "--by", "backend", "--sort", "time", "--json").json
    assert [one["mean_ms"] for one in slow] == sorted((one["mean_ms"] for one in slow), reverse=True)
    assert len(slow) == 6
    dear = asked(home, "--by", "tool", "--sort", "cost", "--limit", "3", "--json").json
    sums = [sum(one["spent"].values()) for one in dear]
    assert sums == sorted(sums, reverse=True)


def test_words_are_found_in_the_arguments_that_are_kept(home: Path) -> None:
    found = asked(home, "--search", "telephone 37", "--json").json
    assert {one["call_id"] for one in found} == {
        one["call_id"] for one in asked(home, "--limit", "2000", "--json").json if 37 in (one["kept"] or {}).values()
    }
    assert asked(home, "--search", "nowhere").out == "No call fits.\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--where", "amount > 1"), "is not like args.amount > 100"),
        (("--by", "colour"), "agent"),
        (("--since", "lately"), "is neither like 30m, 2h, 1d, today"),
    ],
)
def test_a_question_that_is_none_is_refused_with_what_it_could_be(
    home: Path, words: tuple[str, ...], told: str
) -> None:
    said = broker("log", *words, cwd=home)
    assert said.code == 2
    assert told in " ".join(said.err.split())


def test_a_day_of_nothing_is_no_error(home: Path) -> None:
    assert asked(home, "--until", "2001-01-01", "--by", "agent").out == "No call fits.\n"


def test_a_condition_alone_looks_at_the_latest_calls_and_says_so(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(import_module("broker.faces.cli.log"), "SCAN", 100)
    monkeypatch.chdir(home)

    def asked_here(*narrow: str) -> tuple[list[dict[str, Any]], str]:
        words = ["--where", "args.amount > 100", "--limit", "1000", "--json", *narrow]
        assert not built_command("log", COMMANDS["Records"]["log"]).main(words, standalone_mode=False)
        said = capsys.readouterr()
        return orjson.loads(said.out), said.err

    latest = asked(home, "--limit", "100", "--json").json
    found, told = asked_here()
    assert [one["call_id"] for one in found] == [one["call_id"] for one in latest if one["kept"]["amount"] > 100] != []
    assert "Only the latest 100 calls" in told
    wider, told = asked_here("--since", "30d")
    assert len(wider) > len(found)
    assert told == ""
