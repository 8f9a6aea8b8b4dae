"""The two programs in C that the bench is made of, and one measurement with the first of them.

`load.c` asks, `stub.c` stands behind whoever is measured. Both are compiled when they are needed, into a folder that is
thrown away with the bench's results.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
MARK = b"@@@@@@@@@"  # where the number of a request stands, in what is sent and in what is expected
STALLED_S = 60.0


class NoCompilerError(Exception):
    """There is no C compiler to make the programs with."""


@dataclass(frozen=True, slots=True)
class Figures:
    """One point: latencies in milliseconds. sent: the warm-up included. words: the first bad answers."""

    callers: int
    answers: int
    sent: int
    bad: int
    seconds: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    words: str = ""

    @property
    def per_second(self) -> float:
        return self.answers / self.seconds if self.seconds else 0.0


def compiled(name: str, folder: Path) -> Path:
    """The program of this name, compiled unless it is newer than its source. Raises NoCompilerError."""
    source, program = HERE / f"{name}.c", folder / name
    if program.exists() and program.stat().st_mtime > source.stat().st_mtime:
        return program
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise NoCompilerError("the bench needs a C compiler (Debian: apt-get install gcc libc6-dev)")
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run([compiler, "-O2", "-o", str(program), str(source)], check=True)
    return program


def measure(
    program: Path,
    folder: Path,
    port: int,
    request: bytes,
    expected: bytes,
    *,
    callers: int,
    seconds: float,
    warmup_s: float = 0.3,
) -> Figures:
    """program: `load`, compiled. folder: for its two files. request: a whole HTTP request; expected: what each answer's
    body holds. Raises CalledProcessError, TimeoutExpired."""
    asked, wanted = folder / "request", folder / "expected"
    asked.write_bytes(request)
    wanted.write_bytes(expected)
    command = [str(program), str(port), str(callers), str(seconds), str(warmup_s), str(asked), str(wanted)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=seconds + warmup_s + STALLED_S, check=False, errors="replace"
    )
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
    told = json.loads(done.stdout)
    return Figures(
        callers,
        told["answers"],
        told["sent"],
        told["bad"],
        told["seconds"],
        told["p50_us"] / 1000,
        told["p95_us"] / 1000,
        told["p99_us"] / 1000,
        done.stderr,
    )
