"""The official MCP conformance suite, directly and through the broker, check by check.

    server scenarios   against `server.py`, and against a broker in front of it
    tasks scenarios    the same once more with a broker that makes the tasks, before a server that makes none
    client scenarios   with `client.py`, and with a broker between it and the suite's own servers

Of `auth/`, which is about a client's OAuth, there is one scenario: client credentials, as a broker signs in with at
a server behind it. The others want what a broker has not, and is not to have: an agent's sign-in ends at the broker, so
there is no person and no browser for the server behind (discovery, registration, scopes and step-up of an authorization
code), and its credential is stated by an operator and not negotiated (signed assertions, DPoP, an enterprise's grants).

For each requirement set the two runs are compared: the broker must be found no worse in any check, but for those that
its baseline names. A baseline entry that passes is an error too, so that the list only ever says what is so. Directly,
every scenario that is scored must pass, or the comparison would say nothing.

`--accept` writes the baselines anew. `--keep FOLDER` keeps what the suite wrote.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from examples.demo.house import HouseError, environment_of, process
from tests.conformance import suite
from tests.conformance.front import broker_before
from tests.wire.npm import Failed, install

HERE = Path(__file__).parent
SETS = ("2025-11-25", "2026-07-28")
TASKS = "tasks-"  # scenarios of the tasks extension begin so
CLIENT_SCENARIOS = {
    "2025-11-25": ("initialize", "tools_call", "elicitation-sep1034-client-defaults", "sse-retry"),
    "2026-07-28": (
        "tools_call",
        "request-metadata",
        "sep-2322-client-request-state",
        "http-standard-headers",
        "http-custom-headers",
        "http-invalid-tool-headers",
        "json-schema-ref-no-deref",
        "json-schema-2020-12-preservation",
        "auth/client-credentials-basic",
    ),
}
CLIENT_MS = 60_000
HEAD = "Checks that fail only when the broker is between. One reason above each group."


@dataclass(frozen=True, slots=True)
class Leg:
    """One comparison: what is run, and where its two runs and its baseline are."""

    name: str
    folder: str
    baseline: Path
    directly: Callable[[Path], suite.Findings]
    through: Callable[[Path], suite.Findings]


@contextlib.contextmanager
def everything(directory: Path, *options: str) -> Generator[str]:
    """`server.py` in a process of its own; gives its URL."""
    command = [sys.executable, str(HERE / "server.py"), *options]
    told = Path(tempfile.mkstemp(dir=directory, suffix=".log")[1])
    with (
        told.open("w") as log,
        process(command, directory, environment_of({}), log, piped=True) as server,
    ):
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        if not url:
            raise Failed("the server did not start:\n" + told.read_text("utf-8")[-2000:])
        yield url


def server_leg(revision: str, scratch: Path) -> Leg:
    def against(url: str, results: Path) -> suite.Findings:
        return suite.run(["server", "--url", url, "--requirements", revision], results)

    def directly(results: Path) -> suite.Findings:
        with everything(scratch) as url:
            return against(url, results)

    def through(results: Path) -> suite.Findings:
        with everything(scratch) as url, broker_before(url, scratch / f"broker-{revision}") as front:
            return against(front, results)

    return Leg(
        f"server scenarios of {revision}",
        f"server-{revision}",
        HERE / f"server-{revision}.baseline",
        directly,
        through,
    )


def tasks_leg(revision: str, scratch: Path) -> Leg:
    """The server's own tasks, and those that the broker makes of the same tools where the server makes none."""

    def directly(results: Path) -> suite.Findings:
        return suite.read(results.parent / f"server-{revision}-directly", TASKS)

    def served(results: Path) -> suite.Findings:
        scenarios = directly(results).scenarios
        with (
            everything(scratch, "--plain") as url,
            broker_before(url, scratch / "broker-tasks", own_tasks=True) as front,
        ):
            for scenario in scenarios:  # an extension's scenario is run by itself only when it is insisted on
                words = ["server", "--url", front, "--spec-version", revision, "--scenario", scenario, "--force"]
                suite.run(words, results)
        return suite.read(results, TASKS)

    return Leg(f"tasks of the broker's own, {revision}", "tasks", HERE / f"tasks-{revision}.baseline", directly, served)


def client_leg(revision: str) -> Leg:
    def with_client(script: str, results: Path) -> suite.Findings:
        command = shlex.join([sys.executable, str(HERE / script)])  # the suite adds the URL and gives it to a shell
        words = ["client", "--spec-version", revision, "--command", command, "--timeout", str(CLIENT_MS)]
        for scenario in CLIENT_SCENARIOS[revision]:
            insist = ["--force"] if scenario.startswith("auth/") else []  # an extension's, not of the revision's set
            suite.run([*words, "--scenario", scenario, *insist], results)
        return suite.read(results)

    return Leg(
        f"client scenarios of {revision}",
        f"client-{revision}",
        HERE / f"client-{revision}.baseline",
        lambda results: with_client("client.py", results),
        lambda results: with_client("through.py", results),
    )


def compare(leg: Leg, results: Path, *, accept: bool) -> tuple[int, int]:
    """Run both at once, print every scenario that differs, and every surprise. Returns how many scenarios are as they
    should be, and how many are not.
    """
    print(f"\n{leg.name}: directly, and through the broker", flush=True)
    with ThreadPoolExecutor() as both:
        runs = [
            both.submit(run, results / f"{leg.folder}-{how}")
            for how, run in (("directly", leg.directly), ("through", leg.through))
        ]
        direct, brokered = (run.result() for run in runs)
    worse = suite.worse(direct, brokered)
    known = suite.baseline(leg.baseline)
    if accept:
        suite.write_baseline(leg.baseline, HEAD, [check.key for check in worse], known)
        known = suite.baseline(leg.baseline)
    surprises = dict(suite.judge(worse, known))
    surprises |= {check.key: f"fails directly: {direct.why[check]}" for check in direct.failed}
    scenarios = sorted({*direct.scenarios, *brokered.scenarios})
    for scenario in scenarios:
        _tell(scenario, direct, brokered, worse)
    for key, what in surprises.items():
        print(f"  FAILED  {key}\n          {what}", flush=True)
    odd = {key.partition(":")[0] for key in surprises}
    passed, failed = (sum(found.values()) for found in (direct.passed, direct.failed))
    through_passed, through_failed = (sum(found.values()) for found in (brokered.passed, brokered.failed))
    print(
        f"  {len(scenarios)} scenarios; checks directly {passed} passed, {failed} failed; "
        f"through the broker {through_passed} passed, {through_failed} failed; {len(worse)} worse, {len(known)} known",
        flush=True,
    )
    return len(scenarios) - len(odd), len(odd)


def _tell(scenario: str, direct: suite.Findings, brokered: suite.Findings, worse: list[suite.Check]) -> None:
    if direct.of(scenario) == brokered.of(scenario) and all(check.scenario != scenario for check in worse):
        return
    (passed, failed), (through_passed, through_failed) = direct.of(scenario), brokered.of(scenario)
    print(f"  {scenario:48} directly {passed:2}/{failed:<2} through {through_passed:2}/{through_failed:<2}")
    for check in worse:
        if check.scenario == scenario:
            why = brokered.why.get(check) or "not reached"
            print(f"      {check.id}: {' '.join(why.split())[:160]}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accept", action="store_true", help="write the baselines from what is found")
    parser.add_argument("--keep", type=Path, help="an empty folder for what the suite writes")
    told = parser.parse_args()
    if shutil.which("npm") is None:
        print("npm is not installed, so the conformance suite, which comes by npm, is not run.")
        return 0
    passed = failed = 0
    with tempfile.TemporaryDirectory(prefix="broker-conformance-") as scratch:
        results: Path = told.keep.absolute() if told.keep else Path(scratch) / "results"
        results.mkdir(parents=True, exist_ok=True)
        try:
            install()
            servers = [*(server_leg(one, Path(scratch)) for one in SETS), tasks_leg(SETS[-1], Path(scratch))]
            for leg in (*servers, *(client_leg(one) for one in SETS)):
                good, bad = compare(leg, results, accept=told.accept)
                passed, failed = passed + good, failed + bad
        except (Failed, HouseError) as fault:
            print(f"The conformance suite could not be run: {fault}", file=sys.stderr)
            return 1
    print(f"\n{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
