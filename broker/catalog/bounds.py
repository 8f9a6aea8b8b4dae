"""What a JSON Schema may cost: size, depth, references, and how much work one value can cause.

A schema comes from a team's manifest or from a downstream server nobody vouches for. Every schema that passes here is
self-contained and validates any value in bounded time:

- caps on bytes, values and nesting;
- `$ref` points into the schema itself (`#`, `#/…`, `#anchor`), `$dynamicRef` and `$recursiveRef` are refused, `$id`
  stands at the root only (elsewhere it would move what `#` means);
- without recursion, the whole schema unfolds to at most `MAX_UNFOLDED` parts (25 doublings are 33 million);
- with recursion, one value may be judged `branching` times by the same part per level, which is exponential in the
  value's depth; so such a schema gets the depth up to which that stays small, and deeper values are refused.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, cast
from urllib.parse import unquote

from broker.data import dataclass
from broker.model.canonical import canonical

MAX_BYTES = 262_144
MAX_VALUES = 10_000
MAX_DEPTH = 48
MAX_UNFOLDED = 100_000

_IN_PLACE = ("not", "if", "then", "else")
_IN_PLACE_LISTS = ("allOf", "anyOf", "oneOf")
_IN_PLACE_MAPS = ("dependentSchemas", "dependencies")
_BELOW = (
    "additionalProperties", "unevaluatedProperties", "propertyNames", "items", "contains", "additionalItems",
    "unevaluatedItems",
)  # fmt: skip
_MOVING = (b'"$ref"', b'"$dynamicRef"', b'"$recursiveRef"', b'"$id"')  # without these a schema is what it looks like
_ANY = "*"  # the place below that may be any property or item

Path = tuple[str | int, ...]


class UnboundedError(ValueError):
    """path: where in the schema. The message says what and what to do."""

    def __init__(self, message: str, path: Path = ()) -> None:
        super().__init__(message)
        self.path = path


@dataclass(frozen=True, slots=True)
class Bounds:
    """unfolded: how many parts the schema has with every reference written out. branching: see the module's head."""

    unfolded: int
    branching: int

    def depth(self, work: int) -> int | None:
        """How deep a value may be so that one part judges one value at most `work` times; None: any depth."""
        return None if self.branching <= 1 else max(2, int(math.log(work) / math.log(self.branching)))


def bounds_of(schema: Mapping[str, Any]) -> Bounds:
    """Raises UnboundedError."""
    written, values = _measured(schema)
    if not any(word in written for word in _MOVING):
        return Bounds(values, 1)
    graph = _Graph(schema)
    unfolded = graph.unfolded(schema)
    if unfolded > MAX_UNFOLDED:
        raise UnboundedError(f"it unfolds to more than {MAX_UNFOLDED} parts; combine fewer references")
    return Bounds(unfolded, graph.branching())


def depth_exceeds(value: Any, most: int) -> bool:
    """Whether this value is nested deeper than `most` levels. Not recursive."""
    level: list[Any] = [value]
    for _ in range(most + 1):
        below: list[Any] = []
        for found in level:
            if isinstance(found, dict):
                below.extend(cast("dict[str, Any]", found).values())
            elif isinstance(found, list):
                below.extend(cast("list[Any]", found))
        if not below:
            return False
        level = below
    return True


def _measured(schema: Mapping[str, Any]) -> tuple[bytes, int]:
    """The schema's bytes and number of values, within the caps. Without recursion: it may be made to break that."""
    if depth_exceeds(schema, MAX_DEPTH):
        raise UnboundedError(f"it is nested deeper than {MAX_DEPTH} levels")
    try:
        written = canonical(schema)
    except TypeError:
        raise UnboundedError("it holds a value that JSON cannot carry") from None
    if len(written) > MAX_BYTES:
        raise UnboundedError(f"it is larger than {MAX_BYTES} bytes")
    count, level = 0, [cast("Any", schema)]
    while level:
        count += len(level)
        level = [inner for value in level for inner in _members(value)]
    if count > MAX_VALUES:
        raise UnboundedError(f"it has more than {MAX_VALUES} values")
    return written, count


def _members(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from cast("dict[str, Any]", value).values()
    elif isinstance(value, list):
        yield from cast("list[Any]", value)


@dataclass(frozen=True, slots=True)
class _Edge:
    """place: None: the same value; a property's name, "[]" for items, or _ANY."""

    place: str | None
    to: Mapping[str, Any]


class _Graph:
    """The parts of a schema and what each applies to which value. Parts are told apart by identity."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._edges: dict[int, list[_Edge]] = {}
        self._parts: list[Mapping[str, Any]] = []  # keeps the parts alive, so that ids stay theirs
        self._anchors: dict[str, Mapping[str, Any]] = {}
        self._collect_anchors(root)
        waiting: list[tuple[Mapping[str, Any], Path]] = [(root, ())]
        while waiting:
            part, path = waiting.pop()
            if id(part) in self._edges:
                continue
            found = list(self._of(part, path))
            self._edges[id(part)] = [edge for edge, _ in found]
            self._parts.append(part)
            waiting += [(edge.to, at) for edge, at in found]

    def _collect_anchors(self, root: Mapping[str, Any]) -> None:
        level: list[Any] = [root]
        while level:
            for value in level:
                if isinstance(value, dict) and isinstance(value.get("$anchor"), str):  # type: ignore[reportUnknownMemberType]
                    part = cast("dict[str, Any]", value)
                    self._anchors[part["$anchor"]] = part
            level = [inner for value in level for inner in _members(value)]

    def _of(self, part: Mapping[str, Any], path: Path) -> Iterator[tuple[_Edge, Path]]:
        """What this part applies. Raises UnboundedError for what may not stand in it."""
        for word in ("$dynamicRef", "$recursiveRef"):
            if word in part:
                raise UnboundedError(f"{word} is not accepted; use $ref", (*path, word))
        if path and isinstance(part.get("$id"), str):
            raise UnboundedError("$id is accepted at the root only", (*path, "$id"))
        if (reference := part.get("$ref")) is not None:
            yield _Edge(None, self._target(reference, (*path, "$ref"))), (*path, "$ref")
        for word in (*_IN_PLACE, *_BELOW):
            place = None if word in _IN_PLACE else "[]" if word in ("items", "contains") else _ANY
            for at, inner in _schemas(part.get(word), (*path, word)):
                yield _Edge(place, inner), at
        for word in (*_IN_PLACE_LISTS, "prefixItems"):
            for at, inner in _schemas(part.get(word), (*path, word)):
                yield _Edge(None if word in _IN_PLACE_LISTS else "[]", inner), at
        for word in (*_IN_PLACE_MAPS, "properties", "patternProperties", "$defs", "definitions"):
            named = part.get(word)
            for name, inner in cast("dict[str, Any]", named).items() if isinstance(named, dict) else ():
                place = {"properties": name, "patternProperties": _ANY}.get(word)
                if isinstance(inner, dict) and word not in ("$defs", "definitions"):
                    yield _Edge(place, cast("dict[str, Any]", inner)), (*path, word, name)
                elif isinstance(inner, dict):
                    self._refuse_in_definition(cast("dict[str, Any]", inner), (*path, word, name))

    def _refuse_in_definition(self, part: Mapping[str, Any], path: Path) -> None:
        """A definition nobody refers to costs nothing, but the validator resolves its references all the same."""
        level: list[tuple[Any, Path]] = [(part, path)]
        while level:
            for value, at in level:
                if not isinstance(value, dict):
                    continue
                reference: Any = cast("dict[str, Any]", value).get("$ref")
                if isinstance(reference, str):
                    self._target(reference, (*at, "$ref"))
            level = [(inner, at) for value, at in level for inner in _members(value)]

    def _target(self, reference: Any, path: Path) -> Mapping[str, Any]:
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise UnboundedError("a $ref points into this schema (#/$defs/…); nothing is fetched", path)
        pointer = unquote(reference[1:])
        if pointer and not pointer.startswith("/"):
            if pointer not in self._anchors:
                raise UnboundedError("its $ref points to an $anchor that does not exist", path)
            return self._anchors[pointer]
        value: Any = self._root
        for step in pointer.split("/")[1:]:
            value = _step(value, step.replace("~1", "/").replace("~0", "~"))
        if isinstance(value, bool):
            return {}
        if not isinstance(value, dict):
            raise UnboundedError("its $ref points to nothing in this schema", path)
        return cast("dict[str, Any]", value)

    def unfolded(self, root: Mapping[str, Any]) -> int:
        """How many parts the schema has when every reference is written out, a recursive one once."""
        sizes: dict[int, int] = {}
        for part in self._bottom_up(root):
            sizes[id(part)] = min(
                1 + sum(sizes.get(id(edge.to), 1) for edge in self._edges[id(part)]), MAX_UNFOLDED + 1
            )
        return sizes[id(root)]

    def branching(self) -> int:
        """How often, at most, one value is judged by parts of one recursion per level; 1 when there is none."""
        looping = self._looping()
        counts: dict[int, Counter[str]] = {}
        for part in self._bottom_up(self._root):
            count: Counter[str] = Counter()
            for edge in self._edges[id(part)]:
                if edge.place is None:
                    count.update(counts.get(id(edge.to), Counter()))
                elif id(edge.to) in looping:
                    count[edge.place] += 1
            counts[id(part)] = Counter({place: min(times, MAX_UNFOLDED) for place, times in count.items()})
        most = 1
        for part in self._parts:
            if id(part) in looping and id(part) in counts:
                count = counts[id(part)]
                anywhere = count[_ANY]
                most = max(most, anywhere + max((times for place, times in count.items() if place != _ANY), default=0))
        return most

    def _bottom_up(self, root: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        """Every part after those it refers to, as far as recursion lets it."""
        seen: set[int] = set()
        stack: list[tuple[Mapping[str, Any], bool]] = [(root, False)]
        while stack:
            part, done = stack.pop()
            if done:
                yield part
            elif id(part) not in seen:
                seen.add(id(part))
                stack.append((part, True))
                stack += [(edge.to, False) for edge in self._edges[id(part)]]

    def _looping(self) -> set[int]:
        """The parts from which a part of a recursion can be reached: those that matter to its cost."""
        alive = {id(part): {id(edge.to) for edge in self._edges[id(part)]} for part in self._parts}
        before: dict[int, set[int]] = {key: set() for key in alive}
        for key, following in alive.items():
            for other in following:
                before[other].add(key)
        left = {key: len(following) for key, following in alive.items()}
        ended = [key for key, count in left.items() if count == 0]
        while ended:
            for key in before[ended.pop()]:
                left[key] -= 1
                if left[key] == 0:
                    ended.append(key)
        return {key for key, count in left.items() if count > 0}


def _schemas(value: Any, path: Path) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    if isinstance(value, dict):
        yield path, cast("dict[str, Any]", value)
    elif isinstance(value, list):
        for index, inner in enumerate(cast("list[Any]", value)):
            if isinstance(inner, dict):
                yield (*path, index), cast("dict[str, Any]", inner)


def _step(value: Any, step: str) -> Any:
    if isinstance(value, dict):
        return cast("dict[str, Any]", value).get(step)
    if isinstance(value, list) and step.isdecimal():
        items = cast("list[Any]", value)
        return items[int(step)] if int(step) < len(items) else None
    return None
