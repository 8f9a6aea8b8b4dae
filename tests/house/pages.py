"""Reads the code blocks of a Markdown page and runs its commands as a reader would, in order, in an empty folder.

A fenced block says by its language what it is; an HTML comment on the line before it says how it is to be taken:

    console, sh      commands after `$ ` (sh: every line), with the output expected after each; `…` stands for any text,
                     and on a line of its own for any lines
    yaml             manifests; with `<!-- settings -->` a settings file
    <!-- file: PATH -->           the block is written to this file, for the commands that follow
    <!-- in the background -->    the command keeps running until the page ends; its output is waited for
    <!-- not run: REASON -->      nothing is done with the block

Commands of one page share their folder, working directory and exported variables.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(
    r"(?:^<!-- (?P<note>[^\n]*?) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
COMMAND_S = 60.0
READY_S = 20.0  # until a command in the background has said what it should


@dataclass(frozen=True, slots=True)
class Block:
    """line: of the fence, from 1. note: what the comment before it says, "" without one."""

    page: str
    line: int
    language: str
    note: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def is_run(self) -> bool:
        return not self.note.startswith("not run")


@dataclass(frozen=True, slots=True)
class Command:
    text: str
    expected: str


def blocks(page: Path) -> Iterator[Block]:
    source = page.read_text("utf-8")
    for match in FENCE.finditer(source):
        line = source.count("\n", 0, match.start("language")) + 1
        yield Block(page.name, line, match["language"], match["note"] or "", match["text"])


def commands(block: Block) -> Iterator[Command]:
    """The commands of a block, each with the output that stands below it. A backslash continues a line."""
    text = block.text.replace("\\\n", "")
    if block.language == "sh":
        yield from (Command(line, "…") for line in text.splitlines() if line.strip() and not line.startswith("#"))
        return
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        line, _, output = part.partition("\n")
        yield Command(line, output.strip("\n"))


def matches(expected: str, came: str) -> bool:
    """Whether the output is the expected one. Spaces at line ends and empty lines around do not count."""
    pattern = ""
    for line in expected.strip("\n").splitlines():
        if line.strip() == "…":
            pattern += r"(?:[^\n]*\n)*?"
        else:
            pattern += ".*?".join(re.escape(part.strip()) and _spaced(part) for part in line.split("…")) + r"[ ]*\n"
    flat = "".join(f"{line.rstrip()}\n" for line in came.strip("\n").splitlines())
    return re.fullmatch(pattern, flat if pattern else flat.strip()) is not None


def _spaced(part: str) -> str:
    """Runs of spaces match runs of spaces, since columns are as wide as what stands in them."""
    return r"[ ]+".join(re.escape(word) for word in re.split(r" +", part))


class Session:
    """One page's shell: a folder, a working directory, exported variables, and what runs in the background."""

    def __init__(self, directory: Path, environment: Mapping[str, str], replace: Mapping[str, str]) -> None:
        """replace: what stands on the page → what it is here, such as a port; in commands and in expected output."""
        self._home = directory
        self._environment = dict(environment)
        self._replace = replace
        self._state = directory / ".state"
        self._state.write_text("")
        self._where = directory / ".where"
        self._work = directory / "work"
        self._work.mkdir()
        self._where.write_text(str(self._work))
        self._background: list[subprocess.Popen[bytes]] = []

    def write(self, path: str, text: str) -> None:
        target = Path(self._where.read_text().strip()) / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(self._here(text), "utf-8")

    def run(self, command: Command, *, background: bool = False) -> str:
        """Returns "" or what is wrong."""
        text, expected = self._here(command.text), self._here(command.expected)
        came = self._in_background(text, expected) if background else self._in_foreground(text)
        if isinstance(came, int):
            return f"`{text}` ended with exit code {came}"
        return "" if matches(expected, came) else f"`{text}` printed\n{came}\nand not\n{expected}"

    def _here(self, text: str) -> str:
        for written, actual in self._replace.items():
            text = text.replace(written, actual)
        return text

    def _shell(self, text: str) -> list[str]:
        script = f"cd \"$(cat '{self._where}')\"; . '{self._state}'\n{text}\ncode=$?\n"
        return ["bash", "-c", f"{script}export -p > '{self._state}'; pwd > '{self._where}'; exit $code"]

    def _in_foreground(self, text: str) -> str | int:
        done = subprocess.run(
            self._shell(text),
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=COMMAND_S,
            check=False,
        )
        output = done.stdout.decode("utf-8", "replace")
        return output if done.returncode == 0 else f"{output}(exit code {done.returncode})"

    def _in_background(self, text: str, expected: str) -> str | int:
        path = self._home / f".output{len(self._background)}"
        with path.open("wb") as output:
            child = subprocess.Popen(
                ["bash", "-c", f"cd \"$(cat '{self._where}')\"; . '{self._state}'\nexec {text}"],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self._background.append(child)
        deadline = time.monotonic() + READY_S
        while not matches(expected, path.read_text("utf-8", "replace")):
            if child.poll() is not None or time.monotonic() > deadline:
                break
            time.sleep(0.05)
        return path.read_text("utf-8", "replace")

    def close(self) -> None:
        for child in self._background:
            child.terminate()
            child.wait(20)


def base_environment(beside: Path, home: Path) -> dict[str, str]:
    """An environment as on a fresh machine, with the programs of this Python first. home: an empty home."""
    path = f"{beside}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    terminal = {
        "NO_COLOR": "1",
        "COLUMNS": "110",
        "PYTHONUNBUFFERED": "1",
    }  # both outputs in the order they were written
    return {"PATH": path, "HOME": str(home), "LANG": "C.UTF-8", **terminal}
