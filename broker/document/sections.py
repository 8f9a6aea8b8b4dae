"""A section of a document that may be left out."""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic import BaseModel, Field


def section(model: type[BaseModel], description: str | None = None) -> Any:
    """A field whose default is this model as the defaults of its keys say, one object for all, made when it is needed.

    Made without judging them: to ask a model for an object has pydantic compile it, and it is compiled already as a
    part of its whole.
    """

    @cache
    def usual() -> BaseModel:
        return model.model_construct()

    return Field(default_factory=usual, description=description)
