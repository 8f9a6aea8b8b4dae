"""As `client.py`, but with a broker between the client and the suite's server: what the suite sees is the broker."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import anyio

from tests.conformance.client import play
from tests.conformance.front import broker_before


def main() -> None:
    with (
        tempfile.TemporaryDirectory(prefix="broker-conformance-") as scratch,
        broker_before(sys.argv[-1], Path(scratch) / "house") as url,
    ):
        anyio.run(play, os.environ["MCP_CONFORMANCE_SCENARIO"], url)


if __name__ == "__main__":
    main()
