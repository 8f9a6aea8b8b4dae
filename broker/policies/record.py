"""What of a call's arguments its record keeps: a mode for the tool, and others for single fields.

    none       nothing
    digest     SHA-256 of the value; of the whole arguments the record has it anyway
    hmac       a keyed digest: who has the key can find calls by the value, nobody can read it
    redacted   in clear, without secrets and personal data, and long texts cut short
    full       sealed for the auditor; in its place it says so

Values under names such as `password` or `token`, and what `redact` or the schema marks, are kept in no mode.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from typing import Annotated, Any, cast, get_args

from pydantic import AfterValidator, Field, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema

from broker.data import dataclass, field
from broker.model.canonical import canonical, digest
from broker.model.invocation import MAC_BYTES
from broker.model.tool import RecordMode
from broker.policies.detection import is_suspect, scrubbed
from broker.policies.spec import Spec, argument_path

MASK = "[redacted]"
SEALED = "[sealed]"
KEPT_TEXT = 1024  # characters of a text in a redacted record
KEPT_BYTES = 65_536  # of all arguments in a redacted record

Mac = Callable[[str, Any], bytes]
"""`Store.mac`: the keyed digest of an argument's path and value."""

_ABSENT: Any = object()
_EMPTY: Mapping[str, Any] = {}


class RecordSpec(Spec):
    """One word is the mode of all arguments."""

    default: RecordMode = Field(default="redacted", description="What records keep of the arguments.")
    fields: dict[Annotated[str, AfterValidator(argument_path)], RecordMode] = Field(
        default={}, max_length=200, description="What they keep of single ones, by path, such as card.number: digest."
    )

    @model_validator(mode="before")
    @classmethod
    def _word(cls, given: Any) -> Any:
        return {"default": given} if isinstance(given, str) else given

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [{"enum": list(get_args(RecordMode))}, handler(core_schema)]}


@dataclass(slots=True)  # made for each call, see model.empty
class Kept:
    """clear: canonical JSON for everybody who may see the record; sealed: for the auditor; macs: to find it by."""

    clear: bytes | None = None
    sealed: bytes = b""
    macs: tuple[bytes, ...] = ()


_SECRET_ENDS = (
    "password", "passwd", "passphrase", "secret", "secrets", "token", "authorization", "apikey", "accesskey",
    "privatekey", "secretkey", "credential", "credentials", "cookie",
)  # fmt: skip
_SECRET_NAMES = frozenset({"pwd", "pin", "otp", "cvv", "cvc", "auth", "bearer", "jwt"})


@lru_cache(maxsize=4096)
def is_secret_name(name: str) -> bool:
    """Whether a value under this name is never kept: `password`, `access_token`, `apiKey`, `X-Authorization`, …"""
    plain = "".join(sign for sign in name.casefold() if sign.isalnum())
    return plain in _SECRET_NAMES or plain.endswith(_SECRET_ENDS)


@dataclass(frozen=True, slots=True)
class Redaction:
    """paths, fields: as trees of names; {} where the value itself is masked, a mode under "" where one is given."""

    mode: RecordMode
    paths: Mapping[str, Any]
    fields: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @staticmethod
    def compile(spec: RecordSpec, paths: Sequence[Sequence[str]]) -> Redaction:
        if not paths and not spec.fields:
            return _whole(spec.default)
        masks: dict[str, Any] = {}
        for path in sorted(paths, key=len, reverse=True):  # a shorter path masks what a longer one says more about
            _put(masks, path).clear()
        fields: dict[str, Any] = {}
        for path, mode in spec.fields.items():
            _put(fields, path.split("."))[""] = mode
        return Redaction(spec.default, masks, fields)

    def kept(self, arguments: Mapping[str, Any], text: bytes, mac: Mac) -> Kept:
        """What is kept of these arguments. text: their canonical JSON."""
        as_they_are = self.mode == "redacted" and not self.paths and not self.fields and len(text) <= KEPT_TEXT
        if as_they_are and not is_suspect(text.decode()) and not _has_secret_name(arguments):
            return Kept(text)
        if not self.fields and self.mode in ("none", "digest"):
            return _NOTHING
        take = _Taking(mac)
        default = "none" if self.mode == "digest" else self.mode
        clear = take.shown(arguments, self.paths, self.fields, default, "")
        kept = canonical({} if clear is _ABSENT else clear)
        if len(kept) > KEPT_BYTES:
            kept = canonical({"[omitted]": f"{len(kept)} bytes of arguments; their digest identifies them"})
        sealed = canonical(take.sealed(arguments, self.paths, self.fields, default)) if take.has_sealed else b""
        return Kept(kept, sealed, tuple(take.macs))


@cache  # thousands of tools ask for nothing else
def _whole(mode: RecordMode) -> Redaction:
    return Redaction(mode, {})


_NOTHING = Kept()


def _put(tree: dict[str, Any], path: Sequence[str]) -> dict[str, Any]:
    """The node of a path, made if need be."""
    for step in path:
        tree = tree.setdefault(step, {})
    return tree


class _Taking:
    """One walk through the arguments of one call."""

    def __init__(self, mac: Mac) -> None:
        self._mac = mac
        self.macs: list[bytes] = []
        self.has_sealed = False

    def shown(self, value: Any, masks: Mapping[str, Any], rules: Mapping[str, Any], mode: str, path: str) -> Any:
        """The value as everybody sees it; _ABSENT when nothing of it is kept."""
        if isinstance(value, dict) and mode != "digest":
            found: dict[str, Any] = {}
            for name, inner in cast("dict[str, Any]", value).items():
                below = rules.get(name, _EMPTY) if name else _EMPTY
                own = below.get("", mode)
                if _is_hidden(name, masks, below):
                    found |= {} if own == "none" else {name: MASK}
                    continue
                shown = self.shown(inner, masks.get(name) or _EMPTY, below, own, f"{path}.{name}" if path else name)
                if shown is not _ABSENT:
                    found[name] = shown
            return found if found or mode == "redacted" else _ABSENT
        if isinstance(value, list) and mode != "digest":
            items = [self.shown(inner, masks, rules, mode, path) for inner in cast("list[Any]", value)]
            found_items = [item for item in items if item is not _ABSENT]
            return found_items if found_items or mode == "redacted" else _ABSENT
        return self._leaf(value, mode, path)

    def _leaf(self, value: Any, mode: str, path: str) -> Any:
        if mode == "redacted":
            return _cut(value) if isinstance(value, str) else value
        if mode == "digest":
            return digest(value)
        if mode == "hmac":
            mac = self._mac(path, value)
            self.macs.append(mac[:MAC_BYTES])
            return f"hmac:{mac.hex()}"
        if mode == "full":
            self.has_sealed = True
            return SEALED
        return _ABSENT

    def sealed(self, value: Any, masks: Mapping[str, Any], rules: Mapping[str, Any], mode: str) -> Any:
        """The value with only what is kept in full; _ABSENT when nothing is."""
        if isinstance(value, dict):
            found: dict[str, Any] = {}
            for name, inner in cast("dict[str, Any]", value).items():
                below = rules.get(name, _EMPTY) if name else _EMPTY
                if _is_hidden(name, masks, below):
                    continue
                kept = self.sealed(inner, masks.get(name) or _EMPTY, below, below.get("", mode))
                if kept is not _ABSENT:
                    found[name] = kept
            return found if found or mode == "full" else _ABSENT
        if isinstance(value, list):
            items = [self.sealed(inner, masks, rules, mode) for inner in cast("list[Any]", value)]
            found_items = [item for item in items if item is not _ABSENT]
            return found_items if found_items or mode == "full" else _ABSENT
        return value if mode == "full" else _ABSENT


def _is_hidden(name: str, masks: Mapping[str, Any], rule: Mapping[str, Any]) -> bool:
    """Whether no mode keeps it: the manifest or the schema says so, or its name does. A digest of it may be asked for
    by its name; that is no reading."""
    below = masks.get(name)
    return (below is not None and not below) or (
        rule.get("") not in ("hmac", "digest", "none") and is_secret_name(name)
    )


def _has_secret_name(value: Any) -> bool:
    if isinstance(value, dict):
        for name, inner in cast("dict[str, Any]", value).items():
            if is_secret_name(name) or (type(inner) in _CONTAINERS and _has_secret_name(inner)):
                return True
    elif isinstance(value, list):
        return any(map(_has_secret_name, cast("list[Any]", value)))
    return False


_CONTAINERS = (dict, list)


def _cut(text: str) -> str:
    """Scrubbed as a whole first, so that no cut makes half a secret of one."""
    length = len(text)
    if length <= KEPT_TEXT:
        return scrubbed(text)
    return f"{scrubbed(text[: 2 * KEPT_TEXT])[:KEPT_TEXT]}… ({length} characters)"


def secret_paths(schema: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Paths of properties that the schema itself marks as secret: `writeOnly: true` or `format: password`."""
    found: list[tuple[str, ...]] = []
    _collect(schema, (), found)
    return found


def _collect(schema: Any, path: tuple[str, ...], found: list[tuple[str, ...]]) -> None:
    if not isinstance(schema, dict) or len(path) > 16:
        return
    node = cast("dict[str, Any]", schema)
    if path and (node.get("writeOnly") is True or node.get("format") == "password"):
        found.append(path)
        return
    properties = node.get("properties")
    if isinstance(properties, dict):
        for name, inner in cast("dict[str, Any]", properties).items():
            _collect(inner, (*path, name), found)
    _collect(node.get("items"), path, found)
