"""What the manifests of all backend kinds share: strict sections, durations, sizes, references to secrets.

Pydantic stops here: a backend is built from its Spec and keeps plain values.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

import anyio.to_thread
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from broker.model.quantity import duration_s, size_bytes
from broker.ports import Secrets

REFERENCE = re.compile(r"\$\{(?:env|file):[^{}]+\}")


class Section(BaseModel):
    """A mapping in a manifest: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


Seconds = Annotated[
    float,
    BeforeValidator(duration_s),
    WithJsonSchema({"type": ["string", "number"], "pattern": r"^[0-9]+(\.[0-9]+)?(ms|s|m|h|d)$", "minimum": 0}),
]
Bytes = Annotated[
    int,
    BeforeValidator(size_bytes),
    WithJsonSchema({"type": ["string", "integer"], "pattern": r"^[0-9]+(\.[0-9]+)?(B|KiB|MiB|GiB)$", "minimum": 0}),
]


def _by_reference(value: str) -> str:
    if not REFERENCE.search(value):
        raise ValueError("a secret is written as a reference, ${env:NAME} or ${file:PATH}, never as itself")
    return value


SecretText = Annotated[str, AfterValidator(_by_reference)]
"""Text with at least one reference to a secret in it, such as `Bearer ${env:TOKEN}`."""


class Tls(Section):
    """How a backend's certificate is verified. There is no way to switch that off."""

    ca_file: str = Field(default="", description="PEM file of the authorities to trust instead of the system's.")
    client_cert: str = Field(default="", description="PEM file with the certificate the broker shows.")
    client_key: str = Field(default="", description="PEM file with its key; empty: the key is in client_cert.")


def filled(text: str, secrets: Secrets) -> str:
    """`text` with each reference replaced by its secret. Raises LookupError naming the reference."""
    return REFERENCE.sub(lambda match: secrets.resolve(match[0]), text)


def waits(text: str) -> bool:
    """Whether to fill it may take long: a secret in a file may lie on a mount that hangs."""
    return "${file:" in text


async def filled_now(text: str, secrets: Secrets) -> str:
    """`filled`; in a thread where that `waits`."""
    if waits(text):
        return await anyio.to_thread.run_sync(filled, text, secrets, abandon_on_cancel=True)
    return filled(text, secrets)


def secrets_in(template: str, text: str) -> tuple[str, ...]:
    """The secret parts of `text`, which is `template` filled: what must never be shown.

    The fixed parts around the references ("Bearer ") are not secret. Short secrets are left out: masking every "a" of
    a message hides nothing and destroys it.
    """
    pattern = "".join(
        "(.*)" if REFERENCE.fullmatch(part) else re.escape(part)
        for part in re.split(f"({REFERENCE.pattern})", template)
    )
    match = re.fullmatch(pattern, text, re.DOTALL)
    found: tuple[Any, ...] = match.groups() if match else (text,)
    return tuple(secret for secret in found if len(secret) >= 4)
