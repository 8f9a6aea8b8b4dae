"""What a broker imports before it is ready: nothing that costs more memory and start than all the rest together may.

They are imported when something needs them: the SDK by the first request that goes on to it, or by an MCP backend.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import broker

LATER = ("mcp", "mcp_types", "rich", "pygments")


def test_a_start_imports_nothing_heavy_that_may_never_be_needed() -> None:
    served = "import sys, broker.faces.cli.app, broker.faces.cli.serve, broker.faces.cli.serving, broker.backends.http"
    told = f"{served}; print([name for name in {LATER!r} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_data_classes_are_made_cheaply() -> None:
    """Those of the standard library compile six functions each: see `broker.data`. The verifier shares no code."""
    dear = [
        str(path)
        for path in Path(broker.__file__).parent.rglob("*.py")
        if "verifier" not in path.parts and path.name != "data.py"
        if re.search(r"^from dataclasses import .*\bdataclass\b", path.read_text("utf-8"), re.MULTILINE)
    ]
    assert dear == []
