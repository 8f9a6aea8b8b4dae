"""Schemathesis against the served API and its published description: every check it knows, generated requests, good and
bad. What it finds is either a fault of the API or a lie of the description; there is no list of exceptions here. One
thing is told to it: 422 answers what fits the schema and yet means nothing, which a schema cannot say (a condition
without a tool, arguments that the tool's own schema refuses); 400 is for what does not fit.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import anyio
import pytest

from tests.premises import House, house_with
from tests.stories.test_call import QUOTA, TOOLS

pytestmark = pytest.mark.anyio

# For each operation and phase. A gate that fails by chance teaches nobody: by default the same requests are made each
# time; who names a number of examples hunts, with others every time.
EXAMPLES = os.environ.get("BROKER_TEST_FUZZ_EXAMPLES", "")
DRAWN = (
    ["--max-examples", EXAMPLES] if EXAMPLES else ["--max-examples", "25", "--seed", "1", "--generation-deterministic"]
)
PATIENCE_S = 600
OPEN_HOLDS = 12
SETTINGS = """
[checks]
positive_data_acceptance.expected-statuses = ["2xx", "401", "403", "404", "409", "422", "429", "503"]
"""


@pytest.fixture
async def house(tmp_path: Path) -> AsyncGenerator[House]:
    async with house_with(tmp_path, TOOLS + QUOTA) as house:
        house.person("rita")
        yield house


async def test_what_the_description_promises_is_what_the_api_does(house: House, tmp_path: Path) -> None:
    for amount in range(OPEN_HOLDS):
        await house.held(arguments={"amount": 500 + amount}, name=f"bot-{amount}")
    (tmp_path / "schemathesis.toml").write_text(SETTINGS)
    command = [
        str(Path(sys.executable).with_name("st")), "run", f"{house.url}/api/openapi.json",
        "--header", f"Authorization: Bearer {house.token('rita')}",
        "--checks", "all", *DRAWN, "--no-color", "--report", "ndjson",
        "--report-dir", str(tmp_path / "report"),
    ]  # fmt: skip
    with anyio.fail_after(PATIENCE_S):
        ended = await anyio.run_process(command, check=False, stderr=subprocess.STDOUT, cwd=tmp_path)
    said = ended.stdout.decode(errors="replace")
    assert ended.returncode == 0, said[-20_000:]
    assert re.search(r"(\d+) generated, \1 passed", said), said[-20_000:]  # some were made, and all of them passed
