"""Reading an access token, strictly: RFC 9068 (JWT profile), RFC 8725 (best practices), RFC 7515 (JWS).

A token is untrusted bytes until its signature is checked, and typed claims after. Everything here is pure. Stricter
than the libraries where they are lenient: duplicate JSON keys, a missing `typ` or `kid`, any `crit`, `exp` as text or
years ahead, and names with invisible characters are all refused. `jwk`, `jku`, `x5u`, `x5c` are ignored: a token does
not bring its own key.

What must not live here: finding keys (keys), and what a token's parties may do now (jwt).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, cast

import jiter
from cryptography.exceptions import UnsupportedAlgorithm
from joserfc.errors import JoseError
from joserfc.jwk import Key
from joserfc.jws import JWSRegistry, deserialize_compact
from joserfc.util import urlsafe_b64decode

from broker.data import dataclass
from broker.errors import Unauthenticated

LEEWAY_S = 30
MOST_AHEAD_S = 7 * 86_400  # an access token good for longer is a mistake of its issuer
TYPES = ("at+jwt", "application/at+jwt")
NAME_CHARS = 256
SCOPES = 500

NEXT_STEP = "Get a new access token and try again."


def refused(why: str, reason: str) -> Unauthenticated:
    """why: the end of a sentence; reason: a stable word for records. Neither quotes the token."""
    return Unauthenticated(f"The access token {why}.", next_step=NEXT_STEP, reason=reason)


def invalid() -> Unauthenticated:
    """The one answer before a signature has been verified: whoever forges learns nothing from it."""
    return refused("is not valid here", "invalid_token")


@dataclass(frozen=True, slots=True)
class Unverified:
    """The parts of a token that choose who judges it. Nothing else of it may be used before `verified`."""

    token: str
    issuer: str
    algorithm: str
    key_id: str


@dataclass(frozen=True, slots=True)
class Claims:
    """A verified token's claims, typed. expires_at_ms includes the leeway."""

    subject: str
    client_id: str
    token_id: str
    issued_at_ms: int
    expires_at_ms: int
    scopes: frozenset[str]
    audience: frozenset[str]
    raw: Mapping[str, Any]

    def name(self, claim: str) -> str:
        """A claim that names something, "" when absent. Raises Unauthenticated when it is anything but a name."""
        return _name(self.raw, claim) if claim in self.raw else ""

    def names(self, claim: str) -> frozenset[str]:
        """A claim that lists names. Raises Unauthenticated when it is anything else."""
        value = self.raw.get(claim, [])
        if not isinstance(value, list) or len(cast("list[Any]", value)) > SCOPES:
            raise refused(f"has a claim {claim[:64]!r} that is not a list of names", "invalid_claim")
        return frozenset(_as_name(entry, claim) for entry in cast("list[Any]", value))


def unverified(token: str, types: Collection[str] = TYPES) -> Unverified:
    """Raises Unauthenticated for anything that is not a compact JWS with a header and an issuer we could accept.

    types: of the header's `typ`, in lower case; "" when it may be absent.
    """
    try:
        header_part, payload_part, _ = token.split(".")
        header, payload = _json_object(header_part), _json_object(payload_part)
    except ValueError as error:
        raise invalid() from error
    kind, algorithm, key_id, issuer = header.get("typ", ""), header.get("alg"), header.get("kid"), payload.get("iss")
    if not isinstance(kind, str) or kind.lower() not in types:
        raise refused(f"is not of the right type ({' or '.join(filter(None, types))})", "invalid_token")
    if "crit" in header or "b64" in header:
        raise invalid()
    if not (isinstance(algorithm, str) and isinstance(key_id, str) and isinstance(issuer, str)):
        raise invalid()
    if not 0 < len(key_id) <= NAME_CHARS:
        raise invalid()
    return Unverified(token=token, issuer=issuer, algorithm=algorithm, key_id=key_id)


def verified(token: Unverified, key: Key) -> dict[str, Any]:
    """The claims of a token that this key signed. The caller has checked the algorithm against its list."""
    try:
        return _json_object_of(signed_payload(token, key))
    except ValueError as error:
        raise invalid() from error


def signed_payload(token: Unverified, key: Key) -> bytes:
    """The bytes this key signed. Raises Unauthenticated."""
    try:
        return deserialize_compact(token.token, key, registry=_Registry(algorithms=[token.algorithm])).payload
    except (JoseError, ValueError, TypeError, OverflowError, UnsupportedAlgorithm) as error:
        raise invalid() from error


def claims(raw: Mapping[str, Any], *, audience: Collection[str], now_ms: int) -> Claims:
    """Check what every access token must have. Raises Unauthenticated naming what is wrong."""
    now_s = now_ms / 1000
    expires_s, issued_s = time_of(raw, "exp"), time_of(raw, "iat")
    if expires_s + LEEWAY_S <= now_s:
        raise refused("has expired", "expired")
    if expires_s > now_s + MOST_AHEAD_S + LEEWAY_S:
        raise refused("is valid for longer than is accepted here", "invalid_claim")
    if issued_s > now_s + LEEWAY_S or ("nbf" in raw and time_of(raw, "nbf") > now_s + LEEWAY_S):
        raise refused("is not valid yet", "not_yet_valid")
    named = audience_of(raw)
    if not named & set(audience):
        raise refused("is for another audience", "wrong_audience")
    return Claims(
        subject=_name(raw, "sub"),
        client_id=_name(raw, "client_id"),
        token_id=_name(raw, "jti"),
        issued_at_ms=int(issued_s * 1000),
        expires_at_ms=int((expires_s + LEEWAY_S) * 1000),
        scopes=_scopes(raw),
        audience=frozenset(named),
        raw=raw,
    )


class _Registry(JWSRegistry):
    """joserfc's own registry with our limits, without its header opinions (we have judged the header), and without its
    warning on each use of EdDSA, which the operator allowed on purpose.
    """

    max_header_length = 16_384
    max_payload_length = 16_384

    def check_header(self, header: dict[str, Any]) -> None:
        """Judged in `unverified`."""

    def get_alg(self, name: str) -> Any:
        if name not in (self.allowed or ()) or name not in self.algorithms:
            raise invalid()
        return self.algorithms[name]


def _json_object(part: str) -> dict[str, Any]:
    return _json_object_of(urlsafe_b64decode(part.encode("ascii")))


def _json_object_of(data: bytes) -> dict[str, Any]:
    value = jiter.from_json(data, allow_inf_nan=False, catch_duplicate_keys=True)
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004 – one kind of error for all malformed input
    return cast("dict[str, Any]", value)


def time_of(raw: Mapping[str, Any], claim: str) -> float:
    """RFC 7519 NumericDate: a finite number of seconds, never text or a boolean."""
    value = raw.get(claim)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise refused(f"lacks a usable {claim!r}", "invalid_claim")
    if not math.isfinite(value) or not 0 <= value < 2**53:
        raise refused(f"lacks a usable {claim!r}", "invalid_claim")
    return float(value)


def audience_of(raw: Mapping[str, Any]) -> set[str]:
    value = raw.get("aud")
    if isinstance(value, str):
        return {value}
    if isinstance(value, list):
        entries = cast("list[Any]", value)
        if 0 < len(entries) <= SCOPES and all(isinstance(entry, str) for entry in entries):
            return set(entries)
    raise refused("lacks a usable 'aud'", "invalid_claim")


def _scopes(raw: Mapping[str, Any]) -> frozenset[str]:
    """RFC 6749 section 3.3: names with one space between; compared literally, so nothing is trimmed or folded."""
    value = raw.get("scope", "")
    if not isinstance(value, str):
        raise refused("has a 'scope' that is not text", "invalid_claim")
    names = value.split(" ") if value else []
    if len(names) > SCOPES:
        raise refused("has too many scopes", "invalid_claim")
    return frozenset(name for name in names if name)


def _name(raw: Mapping[str, Any], claim: str) -> str:
    return _as_name(raw.get(claim), claim)


def _as_name(value: Any, claim: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= NAME_CHARS or not value.isprintable():
        raise refused(f"lacks a usable {claim[:64]!r}", "invalid_claim")
    return value
