"""`python -m broker` and the `broker` script."""

from __future__ import annotations

import gc
import sys

GARBAGE = 20_000
"""Objects made and not yet gone before the collector looks: a call's objects go with their last reference, what modules
are made of stays, and looking at all of it again and again was a sixth of a start and of a call."""


def main() -> None:
    gc.set_threshold(GARBAGE)
    from broker.faces.cli.run import run  # imported here so that importing this module costs nothing

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
