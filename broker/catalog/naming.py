"""The names of imported tools: their server's own unless two collide, and then the same in every process.

Order of right: names in the manifests (`kind: tool`, `rename`) stand as they are; an imported tool keeps its name if
nobody else has it or one that looks like it; all others become `backend_name`, made unique by a short hash.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from broker.catalog.draft import Draft
from broker.catalog.imports import MAX_NAME, shortened
from broker.errors import Problem
from broker.policies.spec import RESERVED_PREFIX


def settle_names(drafts: Sequence[Draft], problems: list[Problem], notes: list[str]) -> list[Draft]:
    """The drafts with their final names; those that cannot be told apart are left out with a note."""
    taken: dict[str, Draft] = {draft.name.casefold(): draft for draft in drafts if draft.own}
    for draft in drafts:
        if draft.renamed and not draft.own:
            _claim(draft, taken, problems)
    free = _without_doubles([draft for draft in drafts if not draft.own and not draft.renamed], notes)
    wanted = Counter(draft.name.casefold() for draft in free)
    colliding: list[Draft] = []
    for draft in free:
        name = draft.name.casefold()
        if wanted[name] > 1 or name in taken or name.startswith(RESERVED_PREFIX):
            colliding.append(draft)
        else:
            taken[name] = draft
    for draft in sorted(colliding, key=lambda draft: (draft.plan.name, draft.natural)):
        draft.name = _prefixed(draft, taken)
        taken[draft.name.casefold()] = draft
    kept = {id(draft) for draft in taken.values()}
    notes += [
        f"{draft.declared.source}: {draft.natural[:64]!r} of {draft.plan.name} is called {draft.name!r}"
        for draft in free
        if draft.name != draft.natural
    ]
    return [draft for draft in drafts if id(draft) in kept]


def _claim(draft: Draft, taken: dict[str, Draft], problems: list[Problem]) -> None:
    other = taken.setdefault(draft.name.casefold(), draft)
    if other is not draft:
        like = "is taken" if other.name == draft.name else f"looks like {other.name!r}"
        message = f"rename: {draft.name!r} {like} ({other.declared.place(other.loc)}); choose another name"
        problems.append(draft.declared.problem((*draft.loc, "rename"), message))


def _without_doubles(drafts: Sequence[Draft], notes: list[str]) -> list[Draft]:
    """One server's tool taken by two documents is neither: which effect and scopes were meant, nobody can say."""
    times = Counter((draft.plan.name, draft.natural) for draft in drafts)
    for (backend, natural), count in times.items():
        if count > 1:
            notes.append(f"{natural[:64]!r} of {backend} is left out: {count} imports take it; rename all but one")
    return [draft for draft in drafts if times[draft.plan.name, draft.natural] == 1]


def _prefixed(draft: Draft, taken: dict[str, Draft]) -> str:
    name = f"{draft.plan.name}_{draft.name}"
    if len(name) > MAX_NAME:
        name = shortened(name, f"{draft.plan.name}\0{draft.natural}")
    salt = 0
    while name.casefold() in taken:
        salt += 1
        name = shortened(
            f"{draft.plan.name}_{draft.name}"[: MAX_NAME - 7], f"{draft.plan.name}\0{draft.natural}\0{salt}"
        )
    return name
