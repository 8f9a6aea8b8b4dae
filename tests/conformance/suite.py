"""The official conformance suite as a program, what it found, and what one run found worse than another.

A finding is one check of one scenario, by scenario, check id and name: a suite may give several checks one id, and the
same check several times, so findings are counted. Only what somebody has to do is compared: SUCCESS, FAILURE and
WARNING. What a check merely tells (INFO) or skips differs from run to run.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.wire.npm import BIN, WIRE, Failed

PROGRAM = WIRE / "node_modules" / "@modelcontextprotocol" / "conformance" / "dist" / "index.js"
RUN_S = 300.0
_STAMPED = re.compile(r"^(?:server-)?(.+)-\d{4}-\d\d-\d\dT[\d-]+Z$")  # a folder of results: the scenario, and when


@dataclass(frozen=True, slots=True, order=True)
class Check:
    """scenario, id: as the suite names them. name: further words of the suite for one of several checks of an id."""

    scenario: str
    id: str
    name: str

    @property
    def key(self) -> str:
        """How a baseline names it."""
        return f"{self.scenario}:{self.id}:{self.name}"


@dataclass(slots=True)
class Findings:
    """What one run found. why: the suite's own words for what failed."""

    passed: Counter[Check]
    failed: Counter[Check]
    why: dict[Check, str]
    scenarios: list[str]

    def of(self, scenario: str) -> tuple[int, int]:
        """How many checks of this scenario passed and failed."""
        return _sum(self.passed, scenario), _sum(self.failed, scenario)


def _sum(counted: Counter[Check], scenario: str) -> int:
    return sum(count for check, count in counted.items() if check.scenario == scenario)


def run(arguments: Sequence[str], results: Path, further: Mapping[str, str] = {}) -> Findings:
    """Run the suite with these arguments; its exit code is not asked, its checks are. Raises Failed when it found
    nothing at all or did not end.
    """
    environment = {**os.environ, "PATH": os.pathsep.join([str(BIN), os.environ.get("PATH", os.defpath)]), **further}
    command = ["node", str(PROGRAM), *arguments, "--output-dir", str(results)]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=RUN_S, check=False, cwd=results.parent
        )
    except subprocess.TimeoutExpired as error:
        raise Failed(f"the suite did not end within {RUN_S:.0f} s: {' '.join(arguments)}") from error
    found = read(results)
    if not found.scenarios:
        raise Failed(f"the suite found nothing ({done.returncode}):\n{(done.stderr or done.stdout)[-2000:]}")
    return found


def read(results: Path, begins: str = "") -> Findings:
    """All scenarios of one run whose names begin so, from the checks.json of each."""
    found = Findings(Counter(), Counter(), {}, [])
    for path in sorted(results.rglob("checks.json")):
        named = _STAMPED.match(str(path.parent.relative_to(results)))
        if named is None:
            raise Failed(f"{path.parent.name} does not look like a scenario's results")
        if not named[1].startswith(begins):
            continue
        found.scenarios.append(named[1])
        for entry in json.loads(path.read_text("utf-8")):
            _count(found, named[1], entry)
    return found


def _count(found: Findings, scenario: str, entry: Mapping[str, Any]) -> None:
    check = Check(scenario, str(entry["id"]), str(entry.get("name", "")))
    if entry["status"] == "SUCCESS":
        found.passed[check] += 1
    elif entry["status"] in ("FAILURE", "WARNING"):
        found.failed[check] += 1
        found.why[check] = str(entry.get("errorMessage") or "")


def worse(than: Findings, found: Findings) -> list[Check]:
    """The checks that passed less often, or failed more often, than in the other run. In order."""
    known = {*than.passed, *than.failed, *found.passed, *found.failed}
    return sorted(
        check for check in known if found.passed[check] < than.passed[check] or found.failed[check] > than.failed[check]
    )


# ---------------------------------------------------------------------------------------------------------- baselines


def baseline(path: Path) -> dict[str, str]:
    """The checks known to be worse through the broker, each with the reason in the comment above it.

    One key a line. A comment stands for all keys below it up to the next one.
    """
    known: dict[str, str] = {}
    reason = ""
    for line in path.read_text("utf-8").splitlines() if path.exists() else ():
        if line.startswith("#"):
            reason = line.removeprefix("#").strip()
        elif line.strip():
            known[line.strip()] = reason
    return known


def write_baseline(path: Path, head: str, keys: Iterable[str], known: Mapping[str, str]) -> None:
    """These keys with the reasons that are known for them."""
    by_reason: dict[str, list[str]] = {}
    for key in keys:
        by_reason.setdefault(known.get(key, "to be told"), []).append(key)
    blocks = [f"# {reason}\n" + "\n".join(among) for reason, among in by_reason.items()]
    path.write_text("\n\n".join([f"# {head}", *blocks]) + "\n", "utf-8")


def judge(worse: Sequence[Check], known: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(check, what is wrong): worse and not in the baseline, or in the baseline and no longer worse."""
    now = {check.key for check in worse}
    yield from ((key, "worse through the broker than directly") for key in sorted(now - {*known}))
    yield from ((key, "passes now: take it out of the baseline") for key in sorted({*known} - now))
