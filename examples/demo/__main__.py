"""`python -m examples.demo [--keep DIR]`, the same as `broker demo`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from . import main

parser = argparse.ArgumentParser(
    prog="examples.demo", description="Two agents, every kind of answer, recorded and verified."
)
parser.add_argument("--keep", type=Path, metavar="DIR", help="work in this folder and leave it as it is afterwards")

if __name__ == "__main__":
    sys.exit(main(parser.parse_args().keep))
