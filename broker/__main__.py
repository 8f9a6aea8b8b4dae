"""`python -m broker` and the `broker` script."""

from __future__ import annotations

import sys


def main() -> None:
    from broker.faces.cli.app import run  # imported here so that importing this module costs nothing

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
