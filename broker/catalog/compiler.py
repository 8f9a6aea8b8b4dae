"""Manifests and offers into a catalog: everything that can be judged before a call is judged here, once.

Two kinds of faults. What a person wrote and can correct is a problem, all of them are raised together, and there is no
catalog. What a server offers can change at any time and belongs to nobody here: it never makes a catalog impossible;
the tool is left out, and a note says why. So a rule that does not fit an imported tool (it names an argument the tool
no longer has) removes that tool, rather than the rule or the catalog.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from broker.catalog.catalog import BackendPlan, Catalog, Entry
from broker.catalog.draft import Draft
from broker.catalog.imports import import_problems, imported
from broker.catalog.manifest import Declared, Manifests, blocks_of
from broker.catalog.naming import settle_names
from broker.catalog.parts import follow_renames, imported_parts, parts_problems, settle_parts
from broker.catalog.previews import mistakes, planned
from broker.catalog.selection import Selector
from broker.catalog.tools import tool_draft
from broker.data import dataclass, field
from broker.document import Loc, did_you_mean
from broker.errors import ManifestError, Problem
from broker.model.canonical import digest
from broker.model.part import Part
from broker.model.shared import Pool
from broker.policies import quota, rule, toolset
from broker.policies.expression import References
from broker.ports import BackendKind, Offer
from broker.settings import HoldSettings


def compile_catalog(
    manifests: Manifests, kinds: Mapping[str, BackendKind], offers: Mapping[str, Offer], *, hold: HoldSettings
) -> Catalog:
    """The catalog of these manifests with what their servers offer now. An import whose backend has no offer yet gives
    no tools and a note. Raises ManifestError with every problem.
    """
    compilation = _Compilation(manifests, kinds, offers, hold)
    catalog = compilation.run()
    if compilation.problems:
        raise ManifestError(compilation.problems)
    return catalog


def problems_of(manifests: Manifests, kinds: Mapping[str, BackendKind]) -> list[Problem]:
    """What does not fit together in manifests of which some documents are not valid."""
    compilation = _Compilation(manifests, kinds, {}, HoldSettings())
    compilation.run()
    return compilation.problems


@dataclass(frozen=True, slots=True)
class _Said:
    """An expression where it is written. has: what to write when an argument may be missing."""

    declared: Declared[Any]
    loc: Loc
    key: str
    references: References
    has: str = "has(args.{0}) && …"


@dataclass(slots=True)
class _Compilation:
    manifests: Manifests
    kinds: Mapping[str, BackendKind]
    offers: Mapping[str, Offer]
    hold: HoldSettings
    problems: list[Problem] = field(default_factory=list[Problem])
    notes: list[str] = field(default_factory=list[str])
    plans: dict[str, BackendPlan] = field(default_factory=dict[str, BackendPlan])
    pool: Pool = field(default_factory=Pool)  # of what the documents say of schemas
    left_out: set[int] = field(default_factory=set[int])  # ids of drafts a policy cannot judge

    def run(self) -> Catalog:
        for declared in self.manifests.backends:
            self._backend(declared)
        made = [*self._tools(), *self._imports()]
        drafts = settle_names([one for one in made if not isinstance(one.action, Part)], self.problems, self.notes)
        drafts += settle_parts([one for one in made if isinstance(one.action, Part)], self.notes)
        follow_renames(drafts)
        absent = [name for kind, name in self.manifests.broken if kind in ("tool", "import")]
        found = {draft.name for draft in drafts}
        absent += [declared.spec.name for declared in self.manifests.tools if declared.spec.name not in found]
        imports_broken = any(kind == "import" for kind, _ in self.manifests.broken)
        for draft in drafts:
            self._derivation(draft)
        selector = Selector(drafts, self.manifests.imports, self.plans, absent, sure=not imports_broken)
        for draft in drafts:
            self._preview(draft, selector)
        for policy in self.manifests.policies:
            self._policy(policy, selector)
        for one in self.manifests.quotas:
            self._quota(one, selector)
        for one in self.manifests.toolsets:
            audience = toolset.audience(one.spec)
            said = _said(one)
            for draft in selector.named(one, one.spec.tools, self.problems, self.notes):
                draft.audiences.append(audience)
                draft.governed.append(said)
        if self.problems:
            return Catalog.empty()
        kept = [draft for draft in drafts if id(draft) not in self.left_out]
        return self._catalog(sorted(kept, key=lambda draft: draft.name))

    # ------------------------------------------------------------------------------------------------ backends, tools

    def _backend(self, declared: Declared[Any]) -> None:
        spec, blocks = declared.spec, blocks_of(declared.spec, self.kinds)
        if len(blocks) != 1:
            kinds = ", ".join(self.kinds)
            self.problems.append(declared.problem((), f"backend {spec.name!r} has exactly one of {kinds}"))
            return
        ((kind, block),) = blocks.items()
        said = {key: value for key, value in declared.document.data.items() if key != "description"}
        self.plans[spec.name] = BackendPlan(spec.name, kind, block, declared.source, digest(said))

    def _plan(self, declared: Declared[Any]) -> BackendPlan | None:
        name: str = declared.spec.backend
        plan = self.plans.get(name)
        known = {backend.spec.name for backend in self.manifests.backends}
        known |= {broken for kind, broken in self.manifests.broken if kind == "backend"}
        if plan is None and name not in known:
            message = f"backend: there is no backend {name!r}{did_you_mean(name, sorted(known))}"
            self.problems.append(declared.problem(("backend",), message))
        return plan

    def _tools(self) -> Iterator[Draft]:
        for declared in self.manifests.tools:
            plan = self._plan(declared)
            draft = tool_draft(declared, plan, self.kinds, self.pool, self.problems) if plan is not None else None
            if draft is not None:
                yield draft

    def _imports(self) -> Iterator[Draft]:
        for declared in self.manifests.imports:
            plan = self._plan(declared)
            if plan is None:
                continue
            kind = self.kinds[plan.kind]
            if kind.Action is not None:
                message = f"backend: {plan.name!r} is of kind {plan.kind}, which offers nothing; write `kind: tool`"
                self.problems.append(declared.problem(("backend",), message))
                continue
            self.problems += import_problems(declared, plan)
            self.problems += parts_problems(declared, plan)
            offer = self.offers.get(plan.name)
            if offer is None:
                self.notes.append(f"{declared.source}: {plan.name} has not said what it offers; its tools are missing")
            else:
                yield from imported(declared, plan, kind, offer, self.notes)
                yield from imported_parts(declared, plan, offer, self.notes)

    # ------------------------------------------------------------------------------------------------------- policies

    def _policy(self, declared: Declared[rule.PolicySpec], selector: Selector) -> None:
        spec = declared.spec
        drafts = selector.selected(declared, spec, self.problems, self.notes)
        rules = rule.compile_policy(spec, self.hold.expires_s, lambda index: declared.place(("rules", index, "id")))
        for index, one in enumerate(rules):
            loc = ("rules", index, "when")
            self._judge(_Said(declared, loc, f"rules[{index}].when", one.when.references), drafts)
        self._only_reads_run_unreviewed(declared, drafts)
        said = _said(declared)
        for draft in drafts:
            draft.rules += rules
            draft.governed.append(said)

    def _only_reads_run_unreviewed(self, declared: Declared[rule.PolicySpec], drafts: list[Draft]) -> None:
        """`on_expiry: allow` lets a call run that nobody looked at; that is for tools that only read."""
        writing = sorted(draft.name for draft in drafts if draft.effect != "read")
        for index, one in enumerate(declared.spec.rules):
            if one.on_expiry == "allow" and writing:
                message = f"rules[{index}].on_expiry: allow is for tools that only read; {writing[0]} does not"
                self.problems.append(declared.problem(("rules", index, "on_expiry"), message))

    def _quota(self, declared: Declared[quota.QuotaSpec], selector: Selector) -> None:
        spec = declared.spec
        meter = quota.meter(spec)
        drafts = selector.selected(declared, spec, self.problems, self.notes)
        if meter.amount is not None:
            kind = "cost" if spec.cost is not None else "tokens"
            named = _Said(declared, (kind, "amount"), f"{kind}.amount", meter.amount.references, "a required argument")
            self._judge(named, drafts)
        if spec.concurrency is not None:
            meter = self._leased(declared, meter, drafts)
        said = _said(declared)
        for draft in drafts:
            draft.meters.append(meter)
            draft.governed.append(said)

    def _derivation(self, draft: Draft) -> None:
        if draft.derivation is not None:
            loc = (*draft.loc, "idempotency", "from")
            said = _Said(draft.declared, loc, "idempotency.from", draft.derivation.references, "required arguments")
            self._judge(said, [draft])

    def _preview(self, draft: Draft, selector: Selector) -> None:
        """A preview is a call nobody is asked about, so its tool only reads; what it is given is there to be given."""
        said = draft.preview_said
        if said is None:
            return
        loc = (*draft.loc, "preview")
        draft.governed.append(digest(said.model_dump(mode="json")))
        tool = selector.one(draft.declared, (*loc, "tool"), said.tool, self.problems, self.notes)
        draft.preview = planned(said, draft, tool)
        for key, message in mistakes(draft.preview, draft, tool) if tool is not None else ():
            told = f"preview.{key}: {message}"
            if draft.own:
                self.problems.append(draft.declared.problem((*loc, key), told))
            else:  # its server's doing, perhaps; the reviewer is shown that the preview fails
                self.notes.append(f"{draft.declared.place((*loc, key))}: {draft.name}: {told}")

    def _leased(self, declared: Declared[quota.QuotaSpec], meter: quota.Meter, drafts: list[Draft]) -> quota.Meter:
        """A place must not free itself while its call still runs: the lease outlives the longest call."""
        longest_s = max((draft.timeout_s for draft in drafts), default=0.0) + quota.LEASE_GRACE_S
        given_s = declared.spec.concurrency.lease if declared.spec.concurrency else None
        if given_s is not None and given_s < longest_s:
            message = f"concurrency.lease: {given_s:g} s is shorter than a call may take; write at least {longest_s:g}s"
            self.problems.append(declared.problem(("concurrency", "lease"), message))
        if given_s is None and longest_s > quota.DEFAULT_LEASE_S:
            return quota.leased(meter, longest_s)
        return meter

    def _judge(self, said: _Said, drafts: list[Draft]) -> None:
        """Hold what an expression names against every selected tool: a problem for a tool of the manifests (one for all
        tools it is the same for), a tool left out for an imported one."""
        if not said.references.arguments and not said.references.guarded:
            return
        wrong: dict[str, list[str]] = {}
        for draft in drafts:
            for message in draft.misreferences(said.references, has=said.has):
                if draft.own:
                    wrong.setdefault(message, []).append(draft.name)
                elif id(draft) not in self.left_out:
                    self.left_out.add(id(draft))
                    place = said.declared.place(said.loc)
                    self.notes.append(f"{place}: {draft.name} is left out, {said.key} cannot judge it: {message}")
        for message, names in wrong.items():
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            told = f"{said.key}: {message} (tool {', '.join(names[:3])}{more})"
            self.problems.append(said.declared.problem(said.loc, told))

    # ------------------------------------------------------------------------------------------------------ the whole

    def _catalog(self, drafts: list[Draft]) -> Catalog:
        everybody, defaults = not self.manifests.toolsets, [self.hold.expires_s, self.hold.reviewer_scope]
        entries = {draft.name: draft.entry(everybody=everybody, defaults=defaults) for draft in drafts}
        self._note_closed(entries)
        deciding = _deciding(entries, has_toolsets=bool(self.manifests.toolsets))
        reviewers = {scope for entry in entries.values() for one in entry.rules.rules for scope in _review_scopes(one)}
        asked = {scope for entry in entries.values() for scope in entry.tool.scopes}
        parts = {name: entry for name, entry in entries.items() if isinstance(entry.tool.action, Part)}
        return Catalog(
            version=self._version(entries, drafts),
            entries={name: entry for name, entry in entries.items() if name not in parts},
            parts=parts,
            backends=self.plans,
            notes=tuple(dict.fromkeys(self.notes)),
            all_scopes=frozenset(asked | reviewers | {self.hold.reviewer_scope}),
            may_hold=any(entry.rules.may_hold for entry in entries.values()),
            _deciding=deciding,
        )

    def _note_closed(self, entries: Mapping[str, Entry]) -> None:
        for name, entry in entries.items():
            permits = any(one.effect != "deny" for one in entry.rules.rules)
            if entry.rules.default.outcome == "deny" and not permits:
                self.notes.append(f"{entry.tool.source}: nobody can call {name}: it writes, and nothing permits it")

    def _version(self, entries: Mapping[str, Entry], drafts: list[Draft]) -> str:
        documents = (*self.manifests.policies, *self.manifests.quotas, *self.manifests.toolsets)
        return digest(
            [
                [
                    [
                        draft.owner,
                        draft.timeout_s,
                        draft.answer.model_dump(mode="json", include=_ANSWER),
                        asdict(draft.derivation) if draft.derivation else None,
                    ]
                    for draft in drafts
                ],
                [entry.tool.definition for entry in entries.values()],
                [declared.spec.model_dump(mode="json", by_alias=True) for declared in documents],
                {name: plan.digest for name, plan in self.plans.items()},
                [self.hold.expires_s, self.hold.reviewer_scope],
            ]
        )


_ANSWER = {"caps", "record", "redact", "result", "usage", "output"}


def _said(declared: Declared[Any]) -> str:
    """The digest of all a document says."""
    return digest(declared.spec.model_dump(mode="json", by_alias=True))


def _deciding(entries: Mapping[str, Entry], *, has_toolsets: bool) -> tuple[Any, ...]:
    """Which parts of a principal decide what is listed."""
    if has_toolsets:
        return ("agent", "user", "tenant", "groups", "scopes")
    variables = {name for entry in entries.values() for name in entry.rules.early_variables}
    parts = [part for part in ("agent", "user", "tenant", "groups") if f"caller.{part}" in variables]
    return (*parts, "scopes")


def _review_scopes(one: rule.Rule) -> tuple[str, ...]:
    return one.verdict.terms.scopes if one.verdict.terms is not None else ()
