"""One part of a history, for the process that puts them together (join.py): PATH LOW HIGH; the result on stdout."""

from __future__ import annotations

import sys
from pathlib import Path

from broker.verifier.join import walk_part

if __name__ == "__main__":
    sys.stdout.buffer.write(walk_part(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
