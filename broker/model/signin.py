"""A person's sign-in in a browser, as the console begins it and an issuer ends it: what is kept between, what comes."""

from __future__ import annotations

import hashlib
import secrets
from base64 import urlsafe_b64encode

from broker.data import dataclass


@dataclass(frozen=True, slots=True)
class Attempt:
    """One way to the issuer and back. Each value is 256 random bits at least and is used once."""

    state: str
    nonce: str
    verifier: str

    @classmethod
    def new(cls) -> Attempt:
        return cls(secrets.token_urlsafe(32), secrets.token_urlsafe(32), secrets.token_urlsafe(48))

    @property
    def code_challenge(self) -> str:
        """RFC 7636, S256."""
        return urlsafe_b64encode(hashlib.sha256(self.verifier.encode()).digest()).rstrip(b"=").decode()


@dataclass(frozen=True, slots=True)
class Grant:
    """What the issuer gave. refresh_token, id_token: "" when it gave none."""

    access_token: str
    refresh_token: str = ""
    id_token: str = ""
