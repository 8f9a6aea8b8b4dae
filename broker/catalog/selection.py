"""Which tools a document means, and whether what it says means anything at all."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from fnmatch import translate
from typing import Any

from broker.catalog.draft import Draft
from broker.catalog.imports import could_bring
from broker.catalog.manifest import Declared, ImportSpec
from broker.catalog.parts import parts_could_bring
from broker.document import Loc, did_you_mean
from broker.errors import Problem
from broker.policies.spec import Selection


class Selector:
    """All tools by name, backend and owner. absent: names of tools whose documents are not valid, which are not
    reported again."""

    def __init__(
        self,
        drafts: Sequence[Draft],
        imports: Iterable[Declared[ImportSpec]],
        backends: Iterable[str],
        absent: Iterable[str],
        *,
        sure: bool,
    ) -> None:
        """sure: False while something else is wrong, so that what is missing may only be missing because of that."""
        self._drafts = drafts
        self._by_name = {draft.name: draft for draft in drafts}
        self._imports = [declared.spec for declared in imports]
        self._backends = set(backends)
        self._absent = set(absent)
        self._sure = sure

    def selected(
        self, declared: Declared[Any], selection: Selection, problems: list[Problem], notes: list[str]
    ) -> list[Draft]:
        """The tools a policy or quota means; all without a selection."""
        if selection.tools is not None:
            return self.named(declared, selection.tools, problems, notes)
        if selection.backend is not None:
            self._known_backends(declared, selection.backend, problems)
            matches = _any_of(selection.backend)
            return [draft for draft in self._drafts if matches(draft.plan.name)]
        if selection.owner is not None:
            owners = set(selection.owner)
            self._known_owners(declared, selection.owner, problems)
            return [draft for draft in self._drafts if draft.owner in owners]
        return list(self._drafts)

    def named(
        self, declared: Declared[Any], items: Sequence[str], problems: list[Problem], notes: list[str]
    ) -> list[Draft]:
        """The tools with these names or patterns. An exact name nobody has is a problem, unless a server may bring it;
        so is a pattern when nothing at all is selected."""
        patterns = [item for item in items if _is_pattern(item)]
        exact = [item for item in items if not _is_pattern(item)]
        for index, item in enumerate(items):
            if item in exact and item not in self._by_name:
                self._missing(declared, ("tools", index), item, problems, notes)
        matches, names = _any_of(patterns), set(exact)
        found = [draft for draft in self._drafts if draft.name in names or matches(draft.name)]
        if not found and patterns and not exact:
            self._nothing(declared, patterns, problems, notes)
        return found

    def one(
        self, declared: Declared[Any], loc: Loc, name: str, problems: list[Problem], notes: list[str]
    ) -> Draft | None:
        """The tool of this name, from `loc`; a name nobody has is a problem, unless a server may bring it."""
        if name not in self._by_name:
            self._missing(declared, loc, name, problems, notes)
        return self._by_name.get(name)

    def _missing(self, declared: Declared[Any], loc: Loc, name: str, problems: list[Problem], notes: list[str]) -> None:
        if name in self._absent:
            return
        if any(could_bring(spec, name) or parts_could_bring(spec, name) for spec in self._imports):
            notes.append(f"{declared.place(loc)}: there is no tool {name!r} now; a server may still bring it")
        elif self._sure:
            meant = did_you_mean(name, self._by_name)
            problems.append(declared.problem(loc, f"{_written(loc)}: there is no tool {name!r}{meant}"))

    def _nothing(
        self, declared: Declared[Any], patterns: Sequence[str], problems: list[Problem], notes: list[str]
    ) -> None:
        if any(
            could_bring(spec, pattern) or parts_could_bring(spec, pattern)
            for spec in self._imports
            for pattern in patterns
        ):
            notes.append(f"{declared.place(('tools',))}: {', '.join(patterns)} selects no tool now")
        elif self._sure and not self._absent:
            known = did_you_mean(patterns[0], self._by_name)
            problems.append(declared.problem(("tools",), f"tools: {', '.join(patterns)} selects no tool{known}"))

    def _known_backends(self, declared: Declared[Any], items: Sequence[str], problems: list[Problem]) -> None:
        for index, item in enumerate(items):
            if not any(_any_of([item])(name) for name in self._backends) and self._sure:
                message = f"backend[{index}]: there is no backend {item!r}{did_you_mean(item, sorted(self._backends))}"
                problems.append(declared.problem(("backend", index), message))

    def _known_owners(self, declared: Declared[Any], items: Sequence[str], problems: list[Problem]) -> None:
        known = {draft.owner for draft in self._drafts} | {spec.owner for spec in self._imports}
        for index, item in enumerate(items):
            if item not in known and self._sure:
                message = (
                    f"owner[{index}]: nobody called {item!r} owns a tool{did_you_mean(item, sorted(known - {''}))}"
                )
                problems.append(declared.problem(("owner", index), message))


def _written(loc: Loc) -> str:
    """Where it stands, as its writer would say: `tools[0]`, `preview.tool`."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in loc).removeprefix(".")


def _is_pattern(item: str) -> bool:
    return any(sign in item for sign in "*?[")


def _any_of(patterns: Sequence[str]) -> Callable[[str], object]:
    """Whether a name matches one of these; compiled once, since a catalog may have ten thousand names."""
    if not patterns:
        return _nothing
    return re.compile("|".join(f"(?:{translate(pattern)})" for pattern in patterns)).match


def _nothing(_name: str) -> bool:
    return False
