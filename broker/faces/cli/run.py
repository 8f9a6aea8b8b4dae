"""`broker`: from the words a person typed to an exit code.

Exit codes: 0 it went well · 1 the answer is no, or it failed · 2 the command line, the settings or the manifests are
wrong · 130 interrupted. A mistake of the person is told in one sentence each; only a bug of ours shows a traceback.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

from broker.errors import BrokerError, ConfigurationError
from broker.faces.cli import house, start
from broker.faces.cli.output import explain_error, tell
from broker.faces.text import safe

INTERRUPTED = 130


def run(arguments: Sequence[str]) -> int:
    """Carry out one command line. Returns the exit code; raises only for a bug."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a poor terminal must not end a command
    for number, word in enumerate(arguments, 1):
        if not word.isascii() and word != word.encode("utf-8", "ignore").decode():
            tell(f"Error: word {number} of the command line is not UTF-8: {safe(ascii(word[:64])[1:-1])}")
            return 2
    try:
        if (asked := start.plainly(arguments)) is not None:
            start.start(**asked)
            return 0
        from broker.faces.cli.app import carried_out

        return carried_out(arguments)
    except KeyboardInterrupt:
        tell("Interrupted.")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has gone (`broker log | head`); what is still buffered must not fail at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (BrokerError, BaseExceptionGroup) as error:
        return _told(error)


def _told(error: BaseException) -> int:
    """Say what a known error says; task groups may have wrapped it. Anything else is a bug and is raised."""
    leaves = house.leaves(error)
    known = [leaf for leaf in leaves if isinstance(leaf, BrokerError)]
    if len(known) != len(leaves):
        if leaves and all(isinstance(leaf, (KeyboardInterrupt, BrokerError)) for leaf in leaves):
            return INTERRUPTED
        raise error
    for leaf in known:
        explain_error(leaf)
    return 2 if any(isinstance(leaf, ConfigurationError) for leaf in known) else 1
