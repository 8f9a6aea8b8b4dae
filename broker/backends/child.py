"""The guard between the broker and one stdio server: whatever happens to the broker, the server's processes end.

    python -I -S child.py LIFELINE PROGRAM ARGV0 [ARGV...]

Run as a program of its own, never imported. It starts the server in a process group of its own and waits. LIFELINE is
the read end of a pipe whose other end only the broker holds: when the broker ends in any way, kill -9 included, the
kernel closes it and the guard kills the server's whole group. SIGTERM to the guard is passed to the group.

Why a process and not a flag: closing stdin is a request a server may ignore; PR_SET_PDEATHSIG reaches only the direct
child (it is set here too, for the day somebody kills the guard), not what the server started; and code between fork and
exec in a process with threads can deadlock, here there is one thread.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from contextlib import suppress
from typing import NoReturn

PR_SET_PDEATHSIG = 1


def main() -> int:
    lifeline, program, argv = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
    os.set_inheritable(lifeline, False)
    prctl = _prctl()
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(woken, False)
    stop: list[int] = []
    signal.signal(signal.SIGCHLD, _noticed)
    signal.signal(signal.SIGTERM, lambda number, _frame: stop.append(number))
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    guard = os.getpid()
    child = os.fork()
    if child == 0:
        _become(program, argv, guard, prctl)
    with suppress(OSError):  # the child does the same; whoever is first
        os.setpgid(child, child)
    _let_go_of_pipes()
    while True:
        ready, _, _ = select.select([lifeline, woken], [], [])
        if lifeline in ready:
            _signal(child, signal.SIGKILL)
            return 128 + signal.SIGKILL
        with suppress(BlockingIOError):
            os.read(woken, 4096)
        if stop:
            stop.clear()
            _signal(child, signal.SIGTERM)
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            _signal(child, signal.SIGKILL)  # what it started and left behind
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _noticed(_number: int, _frame: object) -> None:
    """Nothing to do: that there is a handler makes Python write to the wake-up descriptor."""


def _prctl() -> object:
    """The C function, loaded before the fork; None where there is none (not Linux)."""
    if not sys.platform.startswith("linux"):
        return None
    import ctypes  # only here; most of the guard's start-up time

    return ctypes.CDLL(None).prctl


def _become(program: str, argv: list[str], guard: int, prctl: object) -> NoReturn:
    """In the forked child: own group, fresh signals, dies with the guard; then the server."""
    try:
        os.setpgid(0, 0)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        if callable(prctl):
            prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
            if os.getppid() != guard:  # it died before the line above
                os._exit(127)
        os.execv(program, argv)  # noqa: S606 – argv is the operator's manifest; no shell
    except OSError as error:
        os.write(2, f"cannot be executed: {error.strerror}\n".encode())
    os._exit(127)


def _let_go_of_pipes() -> None:
    """The server alone holds its stdin, stdout and stderr, so that their ends mean its end."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    os.close(nothing)


def _signal(group: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


if __name__ == "__main__":
    sys.exit(main())
