"""Rules: default deny, forbid beats permit, what cannot be judged is denied; and what a source may say."""

from __future__ import annotations

import re
from itertools import product
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.model.principal import Principal
from broker.policies import engine
from broker.policies.expression import Expression, facts
from broker.policies.rule import PolicySpec, Rules, bind, compile_policy

BOT = Principal(agent="bot", user="ann", tenant="acme", scopes=frozenset({"s"}), groups=frozenset({"g"}))
TOOL = {"tool.name": "t", "tool.version": "1", "tool.owner": "o", "tool.effect": "write", "tool.backend": "b"}
NIGHT = 1_782_000_000_000  # 2026-06-21T00:00:00Z


def rules(
    *written: tuple[str, str],
    effect: Literal["read", "write", "destroy"] = "write",
    scopes: frozenset[str] = frozenset(),
) -> Rules:
    """(effect, condition) each."""
    listed = [{"id": f"r{index}", "when": when, "effect": what} for index, (what, when) in enumerate(written)]
    compiled = compile_policy(PolicySpec.model_validate({"name": "p", "rules": listed})) if listed else ()
    return bind(compiled, scopes=scopes, effect=effect, tool=TOOL)


def outcome(bound: Rules, arguments: dict[str, Any], caller: Principal = BOT) -> tuple[str, str]:
    verdict = bound.decide(caller, arguments, NIGHT)
    return verdict.outcome, verdict.rule


@pytest.mark.parametrize(
    ("effect", "scopes", "expected"),
    [
        ("read", frozenset[str](), "allow"),
        ("write", frozenset[str](), "deny"),
        ("destroy", frozenset[str](), "deny"),
        ("write", frozenset({"s"}), "allow"),
        ("destroy", frozenset({"s"}), "allow"),
    ],
)
def test_without_rules_reading_is_allowed_and_writing_only_behind_a_scope(
    effect: Literal["read", "write", "destroy"], scopes: frozenset[str], expected: str
) -> None:
    assert outcome(rules(effect=effect, scopes=scopes), {}) == (expected, "default")


def test_missing_scopes_come_before_any_rule_and_are_named() -> None:
    bound = rules(("allow", "true"), ("deny", "true"), scopes=frozenset({"s", "x", "a"}))
    verdict = bound.decide(BOT, {}, NIGHT)
    assert (verdict.outcome, verdict.rule, verdict.missing) == ("deny", "scope", ("a", "x"))


@pytest.mark.parametrize("held", ["s:*", "*", "S", "s ", "sx", ""])
def test_scopes_match_literally(held: str) -> None:
    bound = rules(("allow", "true"), scopes=frozenset({"s"}))
    assert bound.decide(Principal(agent="bot", scopes=frozenset({held})), {}, 0).missing == ("s",)
    assert bound.decide(BOT, {}, 0).outcome == "allow"


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ([("allow", "true"), ("deny", "true")], ("deny", "p/r1")),
        ([("hold", "true"), ("deny", "args.n > 1")], ("deny", "p/r1")),
        ([("allow", "true"), ("hold", "true")], ("hold", "p/r1")),
        ([("allow", "args.n > 5"), ("allow", "args.n > 1")], ("allow", "p/r1")),
        ([("allow", "args.n > 5")], ("deny", "default")),
        ([("allow", "true"), ("allow", "args.none == 1")], ("deny", "p/r1")),
        ([("allow", "true"), ("hold", "args.none == 1")], ("deny", "p/r1")),
        ([("allow", "true"), ("deny", "args.s > 1")], ("deny", "p/r1")),
    ],
)
def test_forbid_beats_hold_beats_permit_and_an_error_forbids(
    written: list[tuple[str, str]], expected: tuple[str, str]
) -> None:
    assert outcome(rules(*written), {"n": 2, "s": "x"}) == expected


Result = Literal["true", "false", "error"]
CONDITIONS = {"true": "args.n == 1", "false": "args.n == 2", "error": "args.none == 1"}


def reference(listed: list[tuple[str, Result]], effect: str) -> str:
    """The rule of the house in four lines."""
    if any(result == "error" or (what == "deny" and result == "true") for what, result in listed):
        return "deny"
    met = {what for what, result in listed if result == "true"}
    return "hold" if "hold" in met else "allow" if "allow" in met or effect == "read" else "deny"


@given(
    st.lists(st.tuples(st.sampled_from(["allow", "deny", "hold"]), st.sampled_from(list(CONDITIONS))), max_size=6),
    st.sampled_from(["read", "write", "destroy"]),
)
def test_any_set_of_rules_decides_as_the_reference_does(listed: list[tuple[str, Any]], effect: Any) -> None:
    bound = rules(*((what, CONDITIONS[result]) for what, result in listed), effect=effect)
    assert bound.decide(BOT, {"n": 1}, 0).outcome == reference(listed, effect)


@given(st.permutations([("allow", "true"), ("hold", "false"), ("deny", "false"), ("allow", "error"), ("hold", "true")]))
def test_the_order_of_rules_does_not_decide(listed: list[tuple[str, Any]]) -> None:
    bound = rules(*((what, CONDITIONS[result]) for what, result in listed))
    assert bound.decide(BOT, {"n": 1}, 0).outcome == "deny"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"n": 50}, "allow"),
        ({"n": 50.0}, "allow"),
        ({"n": 50.01}, "hold"),
        ({"n": 2**62}, "hold"),
        ({"n": 1e-300}, "allow"),
    ],
)
def test_whole_numbers_and_decimals_compare_as_numbers(arguments: dict[str, Any], expected: str) -> None:
    assert outcome(rules(("allow", "args.n <= 50"), ("hold", "args.n > 50")), arguments)[0] == expected


@pytest.mark.parametrize("value", ["5", None, True, [1], {"a": 1}, 2**70, "\ud800"])
def test_a_value_of_the_wrong_kind_denies(value: Any) -> None:
    assert outcome(rules(("allow", "args.n <= 50")), {"n": value})[0] == "deny"


def test_a_condition_that_runs_too_long_denies() -> None:
    bound = rules(("allow", "args.l.all(x, args.l.all(y, x + y >= 0))"))
    assert outcome(bound, {"l": list(range(10))})[0] == "allow"
    assert outcome(bound, {"l": list(range(1000))})[0] == "deny"


def test_who_which_tool_and_when_can_be_asked() -> None:
    asked = (
        'caller.agent == "bot" && caller.user == "ann" && caller.tenant == "acme" && "s" in caller.scopes && '
        '"g" in caller.groups && tool.name == "t" && tool.version == "1" && tool.owner == "o" && '
        'tool.effect == "write" && tool.backend == "b" && now.getHours("Europe/Berlin") == 2 && '
        'now == timestamp("2026-06-21T00:00:00Z")'
    )
    assert outcome(rules(("allow", asked)), {})[0] == "allow"
    assert outcome(rules(("allow", asked)), {}, Principal(agent="other"))[0] == "deny"


def test_a_rule_without_condition_or_with_a_bare_true_always_holds() -> None:
    spec = PolicySpec.model_validate(
        {
            "name": "p",
            "rules": [{"id": "a", "effect": "hold"}, {"id": "b", "when": True, "effect": "hold", "expires": "4h"}],
        }
    )
    first, second = compile_policy(spec, 60.0)
    assert first.verdict.terms is not None
    assert second.verdict.terms is not None
    assert (first.verdict.terms.expires_in_ms, second.verdict.terms.expires_in_ms) == (60_000, 14_400_000)
    assert first.when.source == second.when.source == "true"


@pytest.mark.parametrize(
    ("source", "word"),
    [
        ("caller.agnt == 'x'", "did you mean 'caller.agent'?"),
        ("callr.agent == 'x'", "unknown name"),
        ("tool == 'x'", "unknown name 'tool'"),
        ("arguments.x == 1", "unknown name"),
        ("os.system('x')", "unknown name"),
        ("args.x", "must be true or false"),
        ("1 + 1", "must be true or false, this one gives int"),
        ("args.x ==", "the expression ends too early"),
        ("args.x = 1", "Syntax error"),
        ("args.n + 1 > 2.0", "write whole numbers as 2.0"),
        ("(" * 500 + "true" + ")" * 500, "too deeply"),
        ("1+" * 900 + "1 > 0", "too deeply"),
        ("true" + " || true" * 300, "2048 bytes"),
    ],
)
def test_a_condition_that_cannot_work_is_refused_at_load(source: str, word: str) -> None:
    with pytest.raises(ValueError, match=re.escape(word)) as error:
        Expression.compile(source)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("source", "arguments", "guarded", "whole"),
    [
        ("args.a > 1 && args.b.c == 2", {"a", "b"}, set[str](), False),
        ('args["a"] > 1', {"a"}, set[str](), False),
        ("has(args.a) && args.a > 1", {"a"}, {"a"}, False),
        ("has(args.a.b)", {"a"}, set[str](), False),
        ('"a" in args && args.a > 1', {"a"}, {"a"}, False),
        ('args.a == "args.b" // args.c', {"a"}, set[str](), False),
        ("args.a == r'args.b' + '''args.c'''", {"a"}, set[str](), False),
        ("args.exists(k, k == 'a')", set[str](), set[str](), True),
        ("size(args) > 1", set[str](), set[str](), True),
        ("args[caller.agent] == 1", set[str](), set[str](), True),
        (".args.a == 1", {"a"}, set[str](), False),
        ("true || .args.a == 1", {"a"}, set[str](), False),
        ("[1].exists(x, x in .args.a)", {"a"}, set[str](), False),
        ("args.args == 1", {"args"}, set[str](), False),
        ("args.`a-b` == 1", {"a-b"}, set[str](), False),
        ('caller.agent == "x"', set[str](), set[str](), False),
    ],
)
def test_the_arguments_a_condition_names_are_found(
    source: str, arguments: set[str], guarded: set[str], whole: bool
) -> None:
    found = Expression.compile(source).references
    assert (found.arguments, found.guarded, found.whole) == (arguments, guarded, whole)
    assert found.needs_call == (bool(arguments) or whole)


def test_a_rule_that_denies_by_caller_alone_hides_the_tool_and_no_other_rule_does() -> None:
    other = Principal(agent="other")
    by_agent = rules(("deny", 'caller.agent == "bot"'), effect="read")
    assert by_agent.forbids(BOT)
    assert not by_agent.forbids(other)
    assert not rules(("deny", "args.n > 1"), effect="read").forbids(BOT)
    assert not rules(("deny", "now > timestamp('2020-01-01T00:00:00Z')"), effect="read").forbids(BOT)
    assert not rules(("allow", 'caller.agent == "x"'), effect="write").forbids(BOT)


@pytest.mark.parametrize(
    ("written", "hopeless"),
    [
        ([], True),
        ([("deny", "args.n > 1")], True),
        ([("allow", "args.n > 1")], False),
        ([("hold", "true")], False),
        ([("allow", 'caller.agent == "x"')], True),
        ([("allow", 'caller.agent == "bot"')], False),
    ],
)
def test_a_tool_nothing_can_permit_is_hopeless(written: list[tuple[str, str]], hopeless: bool) -> None:
    assert rules(*written).is_hopeless(BOT) is hopeless
    assert not rules(*written, effect="read").is_hopeless(BOT)


@given(
    st.lists(
        st.tuples(st.sampled_from(["allow", "deny", "hold"]), st.sampled_from(list(CONDITIONS))), min_size=1, max_size=4
    )
)
def test_an_explanation_names_exactly_the_step_that_decides(listed: list[tuple[str, Any]]) -> None:
    bound = rules(*((what, CONDITIONS[result]) for what, result in listed))
    deciding = [finding for finding in bound.explain(BOT, {"n": 1}, 0) if finding.decides]
    assert [finding.rule for finding in deciding] == [bound.decide(BOT, {"n": 1}, 0).rule]


def test_amounts_are_numbers_or_texts_and_never_raise() -> None:
    known = facts(frozenset(), TOOL, BOT, {"n": 5, "d": 0.5, "s": "1.5", "b": True}, 0)
    for source, value in (
        ("args.n * 2", 10),
        ("args.d", 0.5),
        ("args.s", "1.5"),
        ("args.none", None),
        ("args.b", None),
    ):
        assert Expression.compile(source, result="amount").amount(known) == value
    with pytest.raises(ValueError, match="amount"):
        Expression.compile("args.n > 1", result="amount")


def test_every_pair_of_effects_agrees_with_the_reference_when_both_hold() -> None:
    for first, second in product(("allow", "deny", "hold"), repeat=2):
        both: list[tuple[str, Result]] = [(first, "true"), (second, "true")]
        assert outcome(rules((first, "true"), (second, "true")), {})[0] == reference(both, "write")


NUMBERS = st.integers() | st.integers(-3, 3) | st.sampled_from([2**63 - 1, 2**63, -(2**63), -(2**63) - 1])
VALUES = NUMBERS | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=2) | st.none() | st.just([1])


@given(
    value=VALUES,
    operator=st.sampled_from(["==", "!=", "<", "<=", ">", ">="]),
    number=st.integers(-3, 3),
    there=st.booleans(),
)
def test_what_is_said_without_the_engine_is_what_the_engine_says(
    value: Any, operator: str, number: int, there: bool
) -> None:
    arguments: dict[str, Any] = {"n": value} if there else {}
    when = Expression.compile(f"args.n {operator} {number}")
    plainly = when.plainly(arguments)
    engine = when.met(facts(when.references.variables, TOOL, BOT, arguments, NIGHT))
    assert plainly in (None, engine)
    assert (plainly is not None) == (there and type(value) is int and -(2**63) <= value < 2**63)


WORDS = (
    "a", "n_1", "_", "int", "has", "args", "true", "false", "null", "in", "as", "break", "const", "continue",
    "else", "for", "function", "if", "import", "let", "loop", "package", "namespace", "return", "var", "void",
    "while", "type", "self", "and", "not", "or", "is", "each", "map", "size", "this", "default", "switch",
    "case", "do", "new", "enum", "message",
)  # fmt: skip


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("number", ["0", "-1", "007", "999999999999999999"])
def test_what_is_compiled_without_the_engine_is_what_the_engine_compiles(word: str, number: str) -> None:
    source = f" args.{word} >= {number}"
    try:
        engine.compiled(source, "condition")
    except ValueError:
        with pytest.raises(ValueError, match=r"."):
            Expression.compile(source)
    else:
        Expression.compile(source)
