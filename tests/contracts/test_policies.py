"""What every kind of policy keeps: one file with its Spec, an example that is valid, and a compile that is pure."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from importlib import import_module
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from broker.policies import POLICIES
from broker.policies.spec import PolicyKind, Slot


def load(reference: str) -> PolicyKind:
    module, _, name = reference.partition(":")
    return getattr(import_module(module), name)


@pytest.fixture(params=list(POLICIES))
def kind(request: pytest.FixtureRequest) -> PolicyKind:
    return load(POLICIES[request.param])


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
        for info in annotation.model_fields.values():
            yield from models_in(info.annotation)
    for part in get_args(annotation):
        yield from models_in(part)


def test_a_row_names_what_it_leads_to() -> None:
    assert {name: load(reference).name for name, reference in POLICIES.items()} == {name: name for name in POLICIES}


def test_a_kind_has_a_slot_of_the_sentence(kind: PolicyKind) -> None:
    assert kind.slot in get_args(Slot)


def test_its_example_is_valid_and_compiles_to_the_same_each_time(kind: PolicyKind) -> None:
    spec = kind.Spec.model_validate(kind.example, strict=True)
    assert type(kind.compile(spec)) is type(kind.compile(spec))
    assert kind.Spec.model_validate(spec.model_dump(mode="json", by_alias=True)) == spec


def test_every_mapping_refuses_unknown_keys_and_cannot_be_changed(kind: PolicyKind) -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        kind.Spec.model_validate({**kind.example, "no_such_key": 1})
    for model in models_in(kind.Spec):
        assert model.model_config.get("extra") == "forbid", model
        assert model.model_config.get("frozen") is True, model


def test_every_key_has_its_sentence(kind: PolicyKind) -> None:
    for model in models_in(kind.Spec):
        for name, info in model.model_fields.items():
            assert name == "kind" or (info.description or "").endswith("."), f"{model.__name__}.{name}"


def test_its_json_schema_can_be_published(kind: PolicyKind) -> None:
    assert kind.Spec.model_json_schema(by_alias=True)["additionalProperties"] is False
