"""Our data classes do what those of the standard library do, to whoever makes, compares, copies and reads objects."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import pytest

from broker.data import dataclass, field

THINGS = {
    "name": "a",
    "size": 3,
    "parts": [1],
}


def made_by(decorated: Any) -> Any:
    """The same class by this decorator, and one that inherits from it."""

    @decorated
    class Thing:
        name: str
        size: int = 1
        parts: list[int] = field(default_factory=list[int])
        seen: int = field(default=7, compare=False)
        hidden: str = field(default="h", repr=False)
        kept: list[int] = field(init=False, default_factory=list[int])
        fixed: int = field(init=False, default=5)
        unset: int = field(init=False, compare=False, repr=False)

        def doubled(self) -> int:
            return self.size * 2

    @decorated
    class Other(Thing):
        more: tuple[int, ...] = ()

    return Thing, Other


OURS, THEIRS = (made_by(decorator(frozen=True, slots=True)) for decorator in (dataclass, dataclasses.dataclass))
OURS_OPEN, THEIRS_OPEN = (made_by(decorator(slots=True)) for decorator in (dataclass, dataclasses.dataclass))
PAIRS = [*zip(OURS, THEIRS, strict=True), *zip(OURS_OPEN, THEIRS_OPEN, strict=True)]


def told(work: Any) -> Any:
    """What it gives, or its error."""
    try:
        return work()
    except (TypeError, AttributeError) as error:
        return type(error), str(error) if isinstance(error, TypeError) else ""


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
@pytest.mark.parametrize(
    ("given", "named"),
    [(("a",), {}), ((), THINGS), (("a", 2, [4]), {"seen": 1}), ((), {}), (("a",), {"name": "b"}), (("a",), {"no": 1})],
)
def test_an_object_is_made_and_shown_alike(ours: Any, theirs: Any, given: tuple[Any, ...], named: Any) -> None:
    for _ in range(2):  # the second time by the constructor that is written by then
        assert told(lambda: repr(ours(*given, **named))) == told(lambda: repr(theirs(*given, **named)))
        assert told(lambda: dataclasses.asdict(ours(*given, **named))) == told(
            lambda: dataclasses.asdict(theirs(*given, **named))
        )


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_objects_are_equal_by_what_is_compared(ours: Any, theirs: Any) -> None:
    for cls in (ours, theirs):
        assert cls("a", seen=1) == cls("a", seen=2)
        assert cls("a") != cls("b")
        assert cls("a") != dataclasses.asdict
        assert cls.__match_args__ == theirs.__match_args__
        assert dataclasses.replace(cls("a"), size=9).size == 9
        assert cls("a").parts is not cls("a").parts
        assert not hasattr(cls("a"), "unset")
        assert not hasattr(cls("a"), "__dict__")
        assert cls("a", 4).doubled() == 8
    assert OURS[0]("a") != OURS[1]("a")


def test_a_frozen_object_cannot_be_changed_and_has_a_hash() -> None:
    @dataclass(frozen=True, slots=True)
    class Frozen:
        name: str
        at: int = field(default=0, compare=False)

    one = Frozen("a")
    with pytest.raises(dataclasses.FrozenInstanceError):
        cast("Any", one).name = "b"
    with pytest.raises(dataclasses.FrozenInstanceError):
        del cast("Any", one).name
    assert hash(one) == hash(Frozen("a", 3))
    assert len({one, Frozen("a"), Frozen("b")}) == 2


def test_an_open_object_has_no_hash_unless_it_is_equal_to_itself_alone() -> None:
    with pytest.raises(TypeError):
        hash(OURS_OPEN[0]("a"))

    @dataclass(slots=True, eq=False)
    class Itself:
        name: str

    one = Itself("a")
    assert one != Itself("a")
    assert {one: 1}[one] == 1


def test_what_a_class_says_itself_stands() -> None:
    @dataclass(slots=True)
    class Own:  # noqa: PLW1641 – equality is what is looked at
        size: int
        doubled: int = field(init=False)

        def __post_init__(self) -> None:
            self.doubled = self.size * 2

        def __repr__(self) -> str:
            return "own"

        def __eq__(self, other: object) -> bool:
            return False

    assert (Own(2).doubled, repr(Own(2)), Own(2) == Own(2)) == (4, "own", False)


def test_a_default_that_all_objects_would_share_is_refused() -> None:
    with pytest.raises(ValueError, match="parts"):

        @dataclass(slots=True)
        class Shared:  # pyright: ignore[reportUnusedClass]
            parts: list[int] = []  # noqa: RUF012 – what is to be refused
