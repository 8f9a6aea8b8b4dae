"""A program's JSON configuration file: read whole, changed in one place, written back with a way back.

What we do not know stays: every other key, their order, the indentation, the file's mode. A file we cannot write back
without loss (comments, duplicate keys, not JSON) is not written at all. Two files stand beside a changed one until the
change is taken back:

    NAME.before-broker         the file as it was, byte for byte (empty: there was none)
    NAME.before-broker.json    what we did: the names we put and dropped, and the digest of what we wrote

Undoing gives the copy back when the file is still what we wrote; when somebody has changed it since, only our own
change is taken back and theirs stays.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from broker.data import dataclass
from broker.errors import Problem, SettingsError

_INDENT = re.compile(r"^([ \t]+)\"", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Undone:
    """exact: the file is again what it was, byte for byte. Otherwise only our change was taken back."""

    path: Path
    exact: bool


@dataclass(frozen=True, slots=True)
class _Journal:
    digest: str
    put: list[str]
    dropped: list[str]


class ConfigFile:
    """One JSON configuration file with a section of servers. path is resolved, so that a linked file stays linked."""

    def __init__(self, path: Path, section: str) -> None:
        self.path = path.resolve()
        self.section = section

    # ------------------------------------------------------------------------------------------------------- reading

    def read(self) -> dict[str, Any]:
        """The whole document; {} when there is no file. Raises SettingsError when it is not plain JSON."""
        return self._parsed(self._bytes())

    def servers(self) -> dict[str, Any]:
        return self._section(self.read())

    def _bytes(self) -> bytes:
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise self._fault(0, 0, f"cannot be read: {error.strerror}") from error

    def _parsed(self, data: bytes) -> dict[str, Any]:
        if not data.strip():
            return {}
        try:
            document: object = json.loads(data.decode("utf-8-sig"), object_pairs_hook=self._unique)
        except json.JSONDecodeError as error:
            raise self._fault(
                error.lineno,
                error.colno,
                f"not plain JSON ({error.msg}); comments cannot be kept, so nothing was changed",
            ) from error
        except UnicodeDecodeError as error:
            raise self._fault(0, 0, "not UTF-8, so nothing was changed") from error
        if not isinstance(document, dict):
            raise self._fault(1, 1, "not a JSON object, so nothing was changed")
        return cast("dict[str, Any]", document)

    def _unique(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        read = dict(pairs)
        if len(read) != len(pairs):
            names = [key for key, _ in pairs]
            twice = next(key for key in names if names.count(key) > 1)
            raise self._fault(0, 0, f"has the key {twice!r} twice, so nothing was changed; remove one")
        return read

    def _section(self, document: dict[str, Any]) -> dict[str, Any]:
        servers = document.get(self.section)
        if servers is None:
            return {}
        if not isinstance(servers, dict):
            raise self._fault(0, 0, f"{self.section} is not an object, so nothing was changed")
        return cast("dict[str, Any]", servers)

    def _fault(self, line: int, column: int, message: str) -> SettingsError:
        return SettingsError([Problem(str(self.path), line, column, message)])

    # ------------------------------------------------------------------------------------------------------- writing

    def change(self, put: Mapping[str, Any], drop: frozenset[str] = frozenset()) -> Path:
        """Put entries into the section and drop others. Returns the copy of what was before.

        Doing it again starts from before the first time, so that undo always leads back to before the broker.
        """
        now, journal = self._bytes(), self._journal()
        before = self._before(now, journal) if journal else now
        document = self._parsed(before)
        servers = {name: entry for name, entry in self._section(document).items() if name not in drop}
        document[self.section] = {**servers, **put}
        written = self._text(document, now or before)
        done = _Journal(_digest(written), sorted(put), sorted(drop))
        mode = self._mode()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _write(self._copy, before, mode & 0o600)
        _write(self._note, json.dumps(asdict(done), indent=2).encode() + b"\n", mode & 0o600)
        _write(self.path, written, mode)
        return self._copy

    def undo(self) -> Undone | None:
        """Take our change back; None when there is none."""
        journal = self._journal()
        if journal is None:
            return None
        now = self._bytes()
        before = self._before(now, journal)
        if before.strip():
            _write(self.path, before, self._mode())
        else:
            self.path.unlink(missing_ok=True)
        self._copy.unlink(missing_ok=True)
        self._note.unlink()
        return Undone(self.path, exact=_digest(now) == journal.digest)

    @property
    def _copy(self) -> Path:
        return self.path.with_name(f"{self.path.name}.before-broker")

    @property
    def _note(self) -> Path:
        return self.path.with_name(f"{self.path.name}.before-broker.json")

    def _journal(self) -> _Journal | None:
        if not (self._note.exists() and self._copy.exists()):
            return None
        return _Journal(**json.loads(self._note.read_bytes()))

    def _before(self, now: bytes, journal: _Journal) -> bytes:
        """The file without our change: the copy when nothing changed since, otherwise now minus what we did."""
        copy = self._copy.read_bytes()
        if _digest(now) == journal.digest:
            return copy
        document, was = self._parsed(now), self._parsed(copy)
        old = self._section(was)
        servers = {name: entry for name, entry in self._section(document).items() if name not in journal.put}
        given_back = {
            name: old[name] for name in (*journal.dropped, *journal.put) if name in old and name not in servers
        }
        document[self.section] = {**given_back, **servers}
        if not document[self.section] and self.section not in was:
            del document[self.section]
        return self._text(document, now) if document or copy.strip() else b""

    def _mode(self) -> int:
        return self.path.stat().st_mode & 0o777 if self.path.exists() else 0o600

    def _text(self, document: dict[str, Any], like: bytes) -> bytes:
        """The document as text, indented and ended as the old text was."""
        old = like.decode("utf-8-sig")
        found = _INDENT.search(old)
        text = json.dumps(document, indent=found[1] if found else 2, ensure_ascii=False)
        if not old or old.endswith("\n"):
            text += "\n"
        return (text.replace("\n", "\r\n") if "\r\n" in old else text).encode()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _write(path: Path, data: bytes, mode: int) -> None:
    """Whole or not at all: a temporary file in the same folder takes the name."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(mode)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
