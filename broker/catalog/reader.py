"""A folder of manifests into `Manifests`: every file, every document, every problem at once.

Files: `*.yaml`, `*.yml`, `*.json` in the folder and below, in the order of their paths; names that begin with a dot are
left out. What has such a name and cannot be read is a problem: a rule must not vanish because its file did.
`*.schema.json` (.yaml, .yml) are no manifests: they are what `{file: …}` in `input` and `output` refers to.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import orjson
from pydantic import BaseModel, ValidationError

from broker.catalog.compiler import problems_of
from broker.catalog.manifest import Declared, Manifests, document_models
from broker.data import dataclass, field
from broker.document import Document, did_you_mean, parse_file, problems_in
from broker.errors import ManifestError, Problem
from broker.ports import BackendKind

SUFFIXES = (".yaml", ".yml", ".json")
SCHEMA_SUFFIXES = tuple(f".schema{suffix}" for suffix in SUFFIXES)

_FIELDS = {
    "backend": "backends",
    "tool": "tools",
    "import": "imports",
    "policy": "policies",
    "quota": "quotas",
    "toolset": "toolsets",
}

__all__ = ["Manifests", "read_manifests"]


def read_manifests(folder: Path, kinds: Mapping[str, BackendKind]) -> Manifests:
    """Everything the folder says. An empty folder says nothing, which is not an error.

    Raises ManifestError with every problem of every file, including what does not fit together among the documents
    that could be read.
    """
    if not folder.is_dir():
        raise ManifestError([Problem(str(folder), 0, 0, "there is no such folder; `broker init` makes one")])
    reading = _Reading(folder, kinds)
    for path in sorted(folder.rglob("*")):
        reading.take(path)
    manifests = reading.manifests()
    if reading.problems:
        raise ManifestError([*reading.problems, *problems_of(manifests, kinds)])
    return manifests


@dataclass(slots=True)
class _Reading:
    folder: Path
    kinds: Mapping[str, BackendKind]
    problems: list[Problem] = field(default_factory=list[Problem])
    _declared: dict[str, list[Declared[Any]]] = field(default_factory=dict[str, list[Declared[Any]]])
    _first: dict[tuple[str, str], Declared[Any]] = field(default_factory=dict[tuple[str, str], Declared[Any]])
    _broken: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])
    _files: int = 0

    def manifests(self) -> Manifests:
        parts: dict[str, Any] = {name: tuple(self._declared.get(kind, ())) for kind, name in _FIELDS.items()}
        return Manifests(**parts, files=self._files, broken=frozenset(self._broken))

    def take(self, path: Path) -> None:
        """Read it if it is a manifest."""
        if any(part.startswith(".") for part in path.relative_to(self.folder).parts):
            return
        if path.is_dir():
            if path.is_symlink():
                self._unread(path, "is a link to a folder, which is not followed; link its files")
            elif not os.access(path, os.R_OK | os.X_OK):
                self._unread(path, "cannot be read: Permission denied")
        elif path.suffix.lower() in SUFFIXES and not path.name.lower().endswith(SCHEMA_SUFFIXES):
            if path.is_file():
                self.file(path)
            else:
                self._unread(path, "cannot be read: no file is there" if path.is_symlink() else "is no regular file")

    def _unread(self, path: Path, why: str) -> None:
        self.problems.append(Problem(self._shown(path), 0, 0, why))

    def file(self, path: Path) -> None:
        self._files += 1
        parsed = parse_file(path, self._shown(path))
        self.problems += parsed.problems
        models = document_models(self.kinds)
        for document in parsed.documents:
            if (model := self._model(document, models)) is not None:
                self._document(document, model, path)

    def _shown(self, path: Path) -> str:
        return str(Path(self.folder.name) / path.relative_to(self.folder))

    def _model(self, document: Document, models: Mapping[str, type[BaseModel]]) -> type[BaseModel] | None:
        data = document.data
        if not isinstance(data, dict):
            self.problems.append(document.problem((), "a document is a mapping with `kind` and `name`"))
            return None
        kind: Any = cast("dict[str, Any]", data).get("kind")
        if isinstance(kind, str) and kind in models:
            return models[kind]
        said = f"unknown kind {kind[:40]!r}{did_you_mean(kind, models)}" if isinstance(kind, str) else ""
        message = said or f"missing key `kind`; one of {', '.join(models)}"
        self.problems.append(document.problem(("kind",), message))
        return None

    def _document(self, document: Document, model: type[BaseModel], path: Path) -> None:
        data = cast("dict[str, Any]", document.data)
        kind, name = str(data["kind"]), data.get("name")
        before = len(self.problems)
        data, files = self._with_files(document, data, path)
        try:
            spec = model.model_validate_json(orjson.dumps(data), strict=True)
        except ValidationError as error:
            self.problems += problems_in(document, error, model)
        else:
            declared = Declared(spec, document, files)
            if self._is_first(kind, str(name), declared):
                self._declared.setdefault(kind, []).append(declared)
        if len(self.problems) > before and isinstance(name, str):
            self._broken.add((kind, name))

    def _is_first(self, kind: str, name: str, declared: Declared[Any]) -> bool:
        """Names are unique per kind, and so are their look-alikes: a person must be able to tell two apart."""
        first = self._first.setdefault((kind, name.casefold()), declared)
        if first is declared:
            return True
        other: str = first.spec.name
        said = "there is already one" if other == name else f"it looks like {other!r}"
        self.problems.append(
            declared.problem(("name",), f"{kind} {name!r}: {said} ({first.source}); choose another name")
        )
        return False

    # --------------------------------------------------------------------------------------------- {file: …} in schemas

    def _with_files(
        self, document: Document, data: dict[str, Any], path: Path
    ) -> tuple[dict[str, Any], dict[tuple[str | int, ...], Document]]:
        """The document with each {file: …} replaced by what the file holds, and those files."""
        files: dict[tuple[str | int, ...], Document] = {}
        kind = data["kind"]
        if kind == "tool":
            data = self._replaced(document, data, (), path, files)
        elif kind == "import" and isinstance(data.get("tools"), dict):
            tools = {
                name: self._replaced(document, cast("dict[str, Any]", override), ("tools", name), path, files)
                if isinstance(override, dict)
                else override
                for name, override in cast("dict[str, Any]", data["tools"]).items()
            }
            data = {**data, "tools": tools}
        return data, files

    def _replaced(
        self,
        document: Document,
        data: dict[str, Any],
        loc: tuple[str | int, ...],
        path: Path,
        files: dict[tuple[str | int, ...], Document],
    ) -> dict[str, Any]:
        for word in ("input", "output"):
            block: Any = data.get(word)
            if isinstance(block, dict) and cast("dict[str, Any]", block).keys() == {"file"}:
                schema = self._schema_file(document, (*loc, word, "file"), block["file"], path)
                if schema is not None:
                    files[*loc, word] = schema
                data = {**data, word: None if schema is None else schema.data}
        return data

    def _schema_file(self, document: Document, loc: tuple[str | int, ...], name: Any, path: Path) -> Document | None:
        if not isinstance(name, str) or not name.endswith(SCHEMA_SUFFIXES):
            self.problems.append(
                document.problem(loc, f"a schema file is called *{SCHEMA_SUFFIXES[2]} (or .yaml, .yml)")
            )
            return None
        found = (path.parent / name).resolve()
        if not found.is_relative_to(self.folder.resolve()):
            self.problems.append(document.problem(loc, "a schema file lies in the folder of the manifests"))
            return None
        if not found.is_file():
            self.problems.append(document.problem(loc, f"there is no file {name[:200]!r} beside this one"))
            return None
        parsed = parse_file(found, str(Path(self.folder.name) / found.relative_to(self.folder.resolve())))
        self.problems += parsed.problems
        if len(parsed.documents) != 1 or not isinstance(parsed.documents[0].data, dict):
            self.problems.append(document.problem(loc, "a schema file holds one JSON Schema, a mapping"))
            return None
        return parsed.documents[0]
