"""The embedded issuer's signing keys: ES256, made at first use, public halves for the world.

Rotation adds a key that signs from now on; the ones before keep verifying until every token they signed has run out.
"""

from __future__ import annotations

from typing import Any, cast

import orjson
from joserfc.jwk import ECKey

from broker.model.directory import SigningKey
from broker.ports import Directory

ALGORITHM = "ES256"
OUTLIVES_MS = 86_400_000 + 60_000  # the longest access token, and leeway


def signing_key(directory: Directory, now_ms: int) -> ECKey:
    """The key that signs now; made when there is none. Of several processes that start at once, one makes it."""
    known = directory.signing_keys()
    if known and not known[0].retires_at_ms:
        return _private(known[0])
    return _private(directory.add_signing_key(_new(now_ms), retire_others_at_ms=None))


def rotate(directory: Directory, now_ms: int) -> str:
    """Sign with a new key from now on. Returns its kid."""
    return directory.add_signing_key(_new(now_ms), retire_others_at_ms=now_ms + OUTLIVES_MS).kid


def jwks(directory: Directory) -> dict[str, Any]:
    """The public keys as a JWK set."""
    public = [_private(key).as_dict(private=False) for key in directory.signing_keys()]
    return {"keys": [{**key, "use": "sig", "alg": ALGORITHM} for key in public]}


def _new(now_ms: int) -> SigningKey:
    key = ECKey.generate_key("P-256", auto_kid=True)
    text = orjson.dumps({**key.as_dict(private=True), "use": "sig", "alg": ALGORITHM}).decode()
    return SigningKey(kid=cast("str", key.kid), private_jwk=text, created_at_ms=now_ms)


def _private(stored: SigningKey) -> ECKey:
    return ECKey.import_key(cast("dict[str, str | list[str]]", orjson.loads(stored.private_jwk)))
