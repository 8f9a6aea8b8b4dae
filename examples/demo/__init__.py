"""The demo: two agents, every kind of answer, all of it real; recorded, and the records verified.

`house` starts the real things, `agent` is an agent as the broker sees one, `story` is what happens, in order, and
`narrator` tells it. A step that does not come out as it was told ends the demo with exit code 1, naming what was
expected and what came: the demo is a test that can be read.
"""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
from pathlib import Path

import anyio

from .house import HouseError, open_house
from .narrator import Deviation, note, say
from .story import closing, play


def main(keep: Path | None = None) -> int:
    """Play the story. keep: a folder to work in and leave as it is; without one everything is gone afterwards.

    Returns 0 when everything came out as told. In a terminal the house then stays open until Ctrl-C.
    """
    for name in ("SIGTERM", "SIGHUP"):  # a closed terminal too must end the house, not only its narrator
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.default_int_handler)
    directory = keep.resolve() if keep else Path(tempfile.mkdtemp(prefix="broker-demo-"))
    try:
        with open_house(directory) as house:
            anyio.run(play, house)
            closing(house, stays=sys.stdout.isatty())
            if sys.stdout.isatty():
                house.wait()
    except KeyboardInterrupt:
        say("", "Stopped.")
    except (Deviation, HouseError) as fault:
        say("", str(fault))
        return 1
    finally:
        if keep is None:
            shutil.rmtree(directory, ignore_errors=True)
        else:
            note(f"Everything is kept in {directory}.")
    return 0
