"""What a pydantic model finds wrong in a document, in the words of whoever wrote it: where, what, what would be right.

Why not pydantic's own words: they name classes and branches of unions, and some of them show the value.
"""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Union, cast

from pydantic import BaseModel, ValidationError

from broker.document.parsing import Document, Loc
from broker.errors import Problem

MOST_COMPARED = 2000  # comparing is quadratic in the words; a catalog may have ten thousand


def problems_in(document: Document, error: ValidationError, model: type[BaseModel], loc: Loc = ()) -> list[Problem]:
    """What pydantic found, as problems: where, what is wrong, what would be right. Never shows a value but a word that
    was meant to be one of a few.

    loc: where in the document the validated part stands.
    """
    return [problem for _, problem in located_problems(document, error, model, loc)]


def located_problems(
    document: Document, error: ValidationError, model: type[BaseModel], loc: Loc = ()
) -> list[tuple[tuple[str | int, ...], Problem]]:
    """`problems_in`, each with pydantic's own loc. A union reports every branch: the first sentence about a place is
    enough, unless it is about a missing key.
    """
    found: dict[tuple[str | int, ...], list[tuple[tuple[str | int, ...], Problem]]] = {}
    for details in error.errors(include_url=False, include_context=True):
        place = details["loc"]
        real = _real(document, (*loc, *place))
        unknown = details["type"] == "extra_forbidden"
        path = dotted(real[:-1] if unknown else real)
        message = _sentence(cast("Mapping[str, Any]", details), model)
        problem = document.problem((*loc, *place), f"{path}: {message}" if path else message, at_key=unknown)
        found.setdefault(tuple(real), []).append((place, problem))
    return [located[0] for located in found.values()]


def _real(document: Document, loc: Loc) -> list[str | int]:
    """The steps of a pydantic loc that exist in the file."""
    mark, steps = document.mark, list[str | int]()
    for step in loc:
        if step in mark.members:
            mark = mark.members[step]
            steps.append(step)
    if loc and (not steps or steps[-1] != loc[-1]) and isinstance(loc[-1], str):
        steps.append(loc[-1])
    return steps


def dotted(loc: Loc) -> str:
    """`rules[1].when`: a place in the words of a path."""
    text = ""
    for step in loc:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word that was probably meant, or ""."""
    close = difflib.get_close_matches(word[:80], list(known)[:MOST_COMPARED], n=1, cutoff=0.6)
    return close[0] if close else ""


def did_you_mean(word: str, known: Iterable[str], *, most: int = 12) -> str:
    """`; did you mean 'x'?`, or what there is when nothing is near; "" when there is nothing at all."""
    names = list(dict.fromkeys(known))
    if close := nearest(word, names):
        return f"; did you mean {close!r}?"
    more = ", …" if len(names) > most else ""
    return f"; known: {', '.join(names[:most])}{more}" if names else ""


_TYPES = {
    "string_type": "must be text; put it in quotes",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "list_type": "must be a list, such as [a, b]",
    "tuple_type": "must be a list, such as [a, b]",
    "set_type": "must be a list, such as [a, b]",
    "frozen_set_type": "must be a list, such as [a, b]",
    "dict_type": "must be a mapping of keys to values",
    "model_type": "must be a mapping of keys to values",
    "dataclass_type": "must be a mapping of keys to values",
}


def _sentence(details: Mapping[str, Any], model: type[BaseModel]) -> str:
    kind, loc = str(details["type"]), details["loc"]
    context: Mapping[str, Any] = details.get("ctx") or {}
    if kind == "extra_forbidden":
        return f"unknown key {str(loc[-1])[:80]!r}{did_you_mean(str(loc[-1]), _known_keys(model, loc[:-1]))}"
    if kind == "missing":
        return "missing key" + _purpose(model, loc)
    if kind == "literal_error":
        given = details.get("input")
        words = [word.strip("'") for word in re.split(r", | or ", str(context.get("expected", "")))]
        near = nearest(given, words) if isinstance(given, str) else ""
        hint = f"; did you mean {near!r}?" if near else ""
        said = f", not {given[:40]!r}" if isinstance(given, str) else ""
        return f"must be {_either(words)}{said}{hint}"
    if kind == "value_error":
        return str(context.get("error") or details["msg"])
    if kind in _TYPES:
        return _TYPES[kind]
    return str(details["msg"]).replace("Input should", "must").replace("String should", "must")


def _either(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _purpose(model: type[BaseModel], loc: tuple[str | int, ...]) -> str:
    for owner in _models_at(model, loc[:-1]):
        for name, info in owner.model_fields.items():
            if (info.alias or name) == loc[-1] and info.description:
                return f" ({info.description.rstrip('.')})"
    return ""


def _known_keys(model: type[BaseModel], loc: tuple[str | int, ...]) -> list[str]:
    return [info.alias or name for owner in _models_at(model, loc) for name, info in owner.model_fields.items()]


def _models_at(model: type[BaseModel], loc: tuple[str | int, ...]) -> list[type[BaseModel]]:
    """The models that may stand where this loc leads, following fields, items and values of the annotations."""
    current: list[Any] = [model]
    for step in loc:
        following = [following for annotation in current for following in _into(annotation, step)]
        current = following or current  # a step that is a union's branch leads nowhere new
    return list(dict.fromkeys(found for annotation in current for found in _models_of(annotation)))


def _into(annotation: Any, step: str | int) -> Iterator[Any]:
    for found in _branches(annotation):
        if isinstance(found, type) and issubclass(found, BaseModel):
            for name, info in found.model_fields.items():
                if (info.alias or name) == step:
                    yield info.annotation
        else:
            arguments = typing.get_args(found)
            if isinstance(step, int) and arguments:
                yield arguments[0]
            elif typing.get_origin(found) in (dict, Mapping) and len(arguments) == 2:
                yield arguments[1]


def _branches(annotation: Any) -> Iterator[Any]:
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        yield from _branches(typing.get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for branch in typing.get_args(annotation):
            yield from _branches(branch)
    else:
        yield annotation


def _models_of(annotation: Any) -> Iterator[type[BaseModel]]:
    for found in _branches(annotation):
        if isinstance(found, type) and issubclass(found, BaseModel):
            yield found
