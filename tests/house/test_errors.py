"""Every error says the four words an agent needs, and the page that explains the codes knows every one of them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker import errors
from broker.errors import BrokerError, ConfigurationError

PAGE = Path(__file__).parents[2] / "docs" / "errors.md"
ABSTRACT = {"BrokerError", "ConfigurationError"}  # never raised themselves
STAGES = {
    "receive",
    "authenticate",
    "resolve",
    "validate",
    "authorise",
    "admit",
    "dispatch",
    "inspect",
    "record",
    "load",
    "",
}


def classes(root: type[BrokerError] = BrokerError) -> Iterator[type[BrokerError]]:
    yield root
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from classes(child)


def raised() -> list[type[BrokerError]]:
    return [cls for cls in dict.fromkeys(classes()) if cls.__name__ not in ABSTRACT]


@pytest.mark.parametrize("cls", raised(), ids=lambda cls: cls.__name__)
def test_an_error_has_code_stage_effect_and_retryable(cls: type[BrokerError]) -> None:
    assert re.fullmatch(r"[a-z][a-z_]*", cls.code)
    assert cls.stage in STAGES
    assert cls.effect in ("none", "unknown", "done")
    assert isinstance(cls.retryable, bool)


def test_no_two_errors_share_a_code() -> None:
    codes = [cls.code for cls in raised()]
    assert len(codes) == len(set(codes))


def test_every_exported_name_is_drawn_in_the_head_of_the_module() -> None:
    tree = ast.parse(Path(errors.__file__).read_text("utf-8"))
    head = ast.get_docstring(tree) or ""
    missing = [cls.__name__ for cls in raised() if not re.search(rf"\b{cls.__name__}\b", head)]
    assert missing == []


def test_a_refusal_was_never_dispatched() -> None:
    assert {cls.effect for cls in classes(errors.Refusal)} == {"none"}


def test_a_sentence_says_what_happened_and_what_to_do() -> None:
    assert BrokerError("It broke.", next_step="Mend it.").sentence == "It broke. Mend it."
    assert BrokerError("It broke.").sentence == "It broke."


def test_a_configuration_error_tells_every_problem_in_the_order_of_the_files() -> None:
    late, early = errors.Problem("b.yaml", 3, 1, "wrong"), errors.Problem("a.yaml", 9, 5, "missing")
    assert str(ConfigurationError([late, early, late])) == "a.yaml:9:5: missing\nb.yaml:3:1: wrong"


def rows() -> dict[str, list[str]]:
    """The table of docs/errors.md: code → the other cells."""
    cells = [
        [cell.strip() for cell in line.strip("| \n").split("|")]
        for line in PAGE.read_text("utf-8").splitlines()
        if line.startswith("| `")
    ]
    return {row[0].strip("`"): row[1:] for row in cells}


@pytest.mark.parametrize("cls", raised(), ids=lambda cls: cls.code)
def test_the_page_of_errors_says_what_the_code_says(cls: type[BrokerError]) -> None:
    stage, effect, retryable, meaning, remedy = rows()[cls.code]
    assert (stage, effect, retryable) == (cls.stage or "–", cls.effect, "yes" if cls.retryable else "no")
    assert meaning and remedy


def test_the_page_of_errors_has_no_code_that_does_not_exist() -> None:
    assert rows().keys() == {cls.code for cls in raised()}
