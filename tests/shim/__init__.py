"""The preload shim (shim.c) seen from a test: compiled when there is a C compiler, told what to do through its file."""

from __future__ import annotations

import mmap
import shutil
import struct
import subprocess
import sys
import sysconfig
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest

SOURCE = Path(__file__).with_name("shim.c")
WORDS = 4096
KINDS = 8


@cache
def compiled() -> Path:
    """The shared object. Skips the test, saying why, where it cannot be made."""
    if not sys.platform.startswith("linux"):
        pytest.skip("the preload shim is for Linux")
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip(f"no C compiler for {SOURCE.name}")
    target = Path(mkdtemp(prefix="shim-")) / f"shim{sysconfig.get_config_var('SHLIB_SUFFIX') or '.so'}"
    command = [compiler, "-O1", "-Wall", "-Wextra", "-shared", "-fPIC", "-o", str(target), str(SOURCE), "-ldl"]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"{compiler} cannot build {SOURCE.name}: {made.stderr[-500:]}")
    return target


class Shim:
    """One process's plan; see the head of shim.c for its words."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_bytes(bytes(WORDS * 8))
        with path.open("r+b") as file:
            self._words = mmap.mmap(file.fileno(), WORDS * 8)

    def _get(self, word: int) -> int:
        return struct.unpack_from("=q", self._words, word * 8)[0]

    def _set(self, word: int, value: int) -> None:
        struct.pack_into("=q", self._words, word * 8, value)

    def kill_at(self, point: int, *, after: bool) -> None:
        self._set(1, int(after))
        self._set(0, point)

    @property
    def points(self) -> str:
        """The kinds of all points so far: `f` for a sync, `s` for a send."""
        count = min(self._get(2), WORDS - KINDS)
        return "".join(chr(self._get(KINDS + place)) for place in range(count))

    def fail(self, errno: int, *, after_writes: int = 0) -> None:
        """From now on writes to the database fail with this errno, the first `after_writes` excepted."""
        self._set(5, 0)
        self._set(3, after_writes + 1)
        self._set(4, errno)

    def heal(self) -> None:
        self._set(4, 0)

    def close(self) -> None:
        self._words.close()
