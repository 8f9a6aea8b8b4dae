"""How much slower a healthy backend becomes beside a zoo of hostile ones: its p99 alone, and while each beast is called
again and again. The broker has the healthy servers in one process and the beasts in another, as in the story about them
(`tests/stories/test_zoo.py`), which says what a call of each must end in.

Beasts are other machines', and have only this one here: their process takes what the well ones and the generator leave,
or it would be their share of the processor that is measured.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median

from tests.bench.load import MARK, Figures, compiled, measure
from tests.bench.systems import PLACE, broker_in
from tests.bench.wire import Door, call_of
from tests.zoo import BEASTS, HEALTHY, Beast, manifests, serving

CALLERS = 8
ROUNDS = 5
HANDLERS = 8  # threads that call beasts, each one after the other
WELL = next(one for one in HEALTHY if one.kind == "modern")
SETTINGS = "watch: false\ntesting: {open: true}\nstdio: {scopes: [zoo]}\n"
CALLED = [beast for beast in BEASTS if beast.expected is not None]
LISTED_S = 60.0


def beside_the_zoo(folder: Path, seconds: float) -> tuple[Figures, Figures]:
    """The healthy backend's figures alone, and beside the zoo; the medians of pieces taken in turn with it at rest and
    awake. Raises HouseError, TimeoutError."""
    load = compiled("load", PLACE)
    alone: list[Figures] = []
    beside: list[Figures] = []
    with (
        serving() as well,
        serving(nice=19) as beasts,
        broker_in(folder, "zoo", manifests(well, beasts), SETTINGS) as port,
    ):
        door = Door(port)
        request = call_of(door, WELL.tool, {})
        _until_listed(load, folder, port, request)
        for _ in range(ROUNDS):
            for figures, awake in ((alone, ()), (beside, CALLED)):
                with _called(door, awake):
                    figures.append(
                        measure(load, folder, port, request, b"fine", callers=CALLERS, seconds=seconds, warmup_s=0.3)
                    )
    return _middle(alone), _middle(beside)


def _middle(pieces: Sequence[Figures]) -> Figures:
    bad = sum(one.bad for one in pieces)
    return replace(
        pieces[0], bad=bad, p50_ms=median(one.p50_ms for one in pieces), p99_ms=median(one.p99_ms for one in pieces)
    )


def _until_listed(load: Path, folder: Path, port: int, request: bytes) -> None:
    until = time.monotonic() + LISTED_S
    while measure(load, folder, port, request, b"fine", callers=1, seconds=0.1, warmup_s=0.0).bad:
        if time.monotonic() > until:
            raise TimeoutError("the healthy server's tool is not there")
        time.sleep(0.5)


@contextmanager
def _called(door: Door, beasts: Sequence[Beast]) -> Generator[None]:
    """These beasts are called all the time, in turn, by a few threads."""
    over = threading.Event()
    handlers = [
        threading.Thread(target=_call, args=(door, beasts[number::HANDLERS], over), daemon=True)
        for number in range(HANDLERS if beasts else 0)
    ]
    for handler in handlers:
        handler.start()
    try:
        yield
    finally:
        over.set()
        for handler in handlers:
            handler.join(timeout=60)


def _call(door: Door, beasts: Sequence[Beast], over: threading.Event) -> None:
    while not over.is_set():
        for beast in beasts:
            head, _, body = call_of(door, beast.tool, {}).replace(MARK, b"100000000").partition(b"\r\n\r\n")
            lines = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
            connection = http.client.HTTPConnection("127.0.0.1", door.port, timeout=beast.timeout_s + 60)
            try:
                connection.request("POST", door.path, body, lines)
                json.loads(connection.getresponse().read() or b"null")
            except (OSError, ValueError, http.client.HTTPException):
                continue  # what a call of it ends in is the story's to judge
            finally:
                connection.close()
            if over.is_set():
                return
