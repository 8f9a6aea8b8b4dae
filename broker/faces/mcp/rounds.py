"""`requestState` of calls that their server asks back about: sealed on the way out, opened once on the way in.

A state comes back from whoever holds it, so it is encrypted and names everything it is for: the principal, what was
called, with which arguments, until when. Whatever does not fit is refused in one sentence that does not say why. That
it is used once is remembered by the store, in the very database that several processes share, and not in memory: any of
them may be the one that is asked again.

The keys are the settings' (`request_state_keys`), newest first, so that they can be changed without a call being lost;
else one key of the database's own, which all its processes have.
"""

from __future__ import annotations

import hashlib
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Mapping, Sequence
from secrets import token_bytes, token_urlsafe
from typing import Any, cast

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from broker.errors import Malformed
from broker.faces.mcp.agreement import INVALID_PARAMS
from broker.faces.mcp.ports import Clock
from broker.model.answer import Answer
from broker.model.back import INPUT_REQUIRED, Round
from broker.model.call import Call
from broker.model.canonical import canonical

LIFETIME_MS = 600_000
STATE_CHARACTERS = 1_048_576
NONCE_BYTES = 12
_INFO = b"requestState v1"

Keys = Callable[[], Sequence[bytes]]


class Rounds:
    """keys: asked when the first state is sealed or opened; each at least 32 bytes."""

    def __init__(self, keys: Keys, clock: Clock) -> None:
        self._keys = keys
        self._clock = clock
        self._ciphers: tuple[AESGCM, ...] = ()

    def begin(self, call: Call, params: Mapping[str, Any]) -> None:
        """Give the call what it was sent along with, when it is asked again. Raises Malformed (fact `rpc_code`)."""
        state, responses = params.get("requestState"), params.get("inputResponses")
        if state is None and responses is None:
            return
        if not isinstance(responses, dict | None):
            raise Malformed("params.inputResponses must be an object", rpc_code=INVALID_PARAMS)
        given = cast("dict[str, Any] | None", responses)
        if any(not isinstance(one, dict) for one in (given or {}).values()):
            raise Malformed("every one of params.inputResponses must be an object", rpc_code=INVALID_PARAMS)
        if state is None:
            call.round = Round(given)
            return
        sealed = self._opened(state)
        if sealed is None or sealed["for"] != _meant(call) or sealed["until"] <= self._clock.now_ms():
            raise Malformed("Invalid or expired requestState", rpc_code=INVALID_PARAMS)
        call.round = Round(given, sealed["state"], sealed["once"], sealed["until"])

    def result(self, answer: Answer, call: Call) -> dict[str, Any]:
        """The answer as a result; one that asks for input with its state sealed."""
        result = answer.result()
        if result.get("resultType") == INPUT_REQUIRED:
            del result["content"], result["isError"]
            if isinstance(state := result.get("requestState"), str):
                result["requestState"] = self._sealed(state, call)
        return result

    def _sealed(self, state: str, call: Call) -> str:
        until = self._clock.now_ms() + LIFETIME_MS
        claims = {"state": state, "for": _meant(call), "once": token_urlsafe(16), "until": until}
        nonce = token_bytes(NONCE_BYTES)
        return urlsafe_b64encode(nonce + self._ring()[0].encrypt(nonce, orjson.dumps(claims), _INFO)).decode()

    def _opened(self, sealed: object) -> dict[str, Any] | None:
        """The claims; None for whatever none of the keys has sealed."""
        if not isinstance(sealed, str) or not sealed.isascii() or len(sealed) > STATE_CHARACTERS:
            return None
        try:
            raw = urlsafe_b64decode(sealed)
        except ValueError:
            return None
        if (
            urlsafe_b64encode(raw).decode() != sealed
        ):  # Python decodes what is no base64 in part, and leaves out the rest
            return None
        for cipher in self._ring() if len(raw) > NONCE_BYTES else ():
            try:
                return orjson.loads(cipher.decrypt(raw[:NONCE_BYTES], raw[NONCE_BYTES:], _INFO))
            except InvalidTag:
                continue
        return None

    def _ring(self) -> tuple[AESGCM, ...]:
        if not self._ciphers:
            keys = (HKDF(algorithm=SHA256(), length=32, salt=None, info=_INFO).derive(key) for key in self._keys())
            self._ciphers = tuple(AESGCM(key) for key in keys)
        return self._ciphers


def _meant(call: Call) -> str:
    """What a state is good for: this caller's call of this thing with these arguments, and no other."""
    meant = [call.principal.key, call.asked, call.name, hashlib.sha256(canonical(call.arguments)).hexdigest()]
    return hashlib.sha256(orjson.dumps(meant)).hexdigest()
