"""`broker holds --stats`: how deciding goes. What is counted and what it means is told in faces/deciding."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from broker.faces.cli.output import print_json, print_table, say
from broker.faces.cli.records import open_source
from broker.faces.text import safe
from broker.faces.words import count, span

if TYPE_CHECKING:
    from pathlib import Path

    from broker.faces.deciding import Counts, Stats


async def show(config: Path | None, broker: str, days: int, as_json: bool) -> None:
    async with open_source(config, broker) as source:
        found = await source.stats(days)
    if as_json:
        print_json(asdict(found))
    else:
        _print(found, days)


def _print(found: Stats, days: int) -> None:
    whole = found.counts
    say(
        f"In {count(days, 'day')}: {count(whole.held, 'call')} held, {whole.waiting} still waiting.",
        f"Decided by people: {whole.decided}, half of them within {_took(whole)}; "
        f"{_percent(whole.override_rate)} denied or changed.",
        f"Nobody decided in time: {whole.expired} ({_percent(whole.expiry_rate)} of what ended).",
    )
    if found.rules:
        say("")
        print_table(
            ("RULE", "HELD", "APPROVED", "CHANGED", "DENIED", "EXPIRED", "TIME", ""),
            [[one.rule, *_row(one.counts), GRANT if one.always_approved else ""] for one in found.rules],
        )
        say("")
        print_table(
            ("ASKED", "HELD", "APPROVED", "CHANGED", "DENIED", "EXPIRED", "TIME", ""),
            [
                [_asked(one.scopes, one.groups), *_row(one.counts), OVERLOADED if one.is_overloaded else ""]
                for one in found.asked
            ],
        )
    if found.persons:
        say("")
        print_table(
            ("PERSON", "DECIDED", "OF ALL", ""),
            [
                [one.person, str(one.decided), _percent(one.share), "decides most of all" if one.is_overloaded else ""]
                for one in found.persons
            ],
        )


GRANT = "always approved: a grant would do (broker grants propose)"
OVERLOADED = "overloaded: much runs out undecided"


def _row(counts: Counts) -> list[str]:
    numbers = (counts.held, counts.approved, counts.changed, counts.denied, counts.expired)
    return [*(str(number) for number in numbers), _took(counts)]


def _took(counts: Counts) -> str:
    return span(counts.median_ms) if counts.decided else "-"


def _percent(share: float) -> str:
    return f"{share:.0%}"


def _asked(scopes: tuple[str, ...], groups: tuple[str, ...]) -> str:
    names = [f"scope {scope}" for scope in scopes] + [f"group {group}" for group in groups]
    return safe(" or ".join(names) or "the default reviewers")
