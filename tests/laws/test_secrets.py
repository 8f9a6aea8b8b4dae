"""Secrets are read when they are used, and what goes wrong names the reference and never the value."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from broker.secrets import Secrets, derived


def test_a_reference_is_replaced_wherever_it_stands(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("s3cret\n")
    secrets = Secrets(tmp_path, {"TOKEN": "abc"})
    assert secrets.resolve("${env:TOKEN}") == "abc"
    assert secrets.resolve("Bearer ${env:TOKEN}.${file:key}") == "Bearer abc.s3cret"
    assert secrets.resolve(f"${{file:{tmp_path / 'key'}}}") == "s3cret"
    assert secrets.resolve("plain $HOME ${") == "plain $HOME ${"


def test_a_secret_is_read_anew_each_time(tmp_path: Path) -> None:
    secrets = Secrets(tmp_path, {})
    for value in ("one", "two"):
        (tmp_path / "key").write_text(value)
        assert secrets.resolve("${file:key}") == value


@pytest.mark.parametrize(
    ("reference", "why"),
    [
        ("${env:NOPE}", "not set"),
        ("${env:EMPTY}", "is empty"),
        ("${env:}", "is not a reference"),
        ("${vault:x}", "is not a reference"),
        ("${HOME}", "is not a reference"),
        ("${file:none}", "No such file"),
        ("${file:.}", "not a regular file"),
        ("${file:pipe}", "not a regular file"),
        ("${file:empty}", "is empty"),
        ("${file:big}", "larger than"),
        ("${file:binary}", "not UTF-8"),
        ("${file:a\0b}", "not a path"),
    ],
)
def test_what_cannot_be_read_is_told_by_reference_only(tmp_path: Path, reference: str, why: str) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "big").write_bytes(b"canary" * 20_000)
    (tmp_path / "binary").write_bytes(b"canary\xff")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(LookupError, match=why) as error:
        Secrets(tmp_path, {"EMPTY": "", "OTHER": "canary"}).resolve(f"Bearer {reference}")
    assert "canary" not in str(error.value)
    assert reference in str(error.value)


@pytest.mark.parametrize("key", [b"k" * 32, b"a longer key than that of a block of the hash" * 3])
def test_a_derived_key_is_that_of_rfc_5869(key: bytes) -> None:
    library = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"purpose")
    assert derived(key, b"purpose") == library.derive(key)
