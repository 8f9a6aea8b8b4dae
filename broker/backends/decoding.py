"""What came back, made safe: bounded decompression, strict JSON, short excerpts of error texts.

Decompression is ours and not the HTTP library's because a cap must hold *inside* one step of it: 64 KiB of gzip can be
64 MiB of text, and a library that decodes a whole chunk has already allocated it. Only gzip and deflate are offered
and understood; whoever sends anything else did not listen.
"""

from __future__ import annotations

import math
import re
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, cast

import jiter
import orjson

ACCEPT_ENCODING = "gzip, deflate"
_STEP = 65_536
_EXCERPT = 300
_BEARER = re.compile(r"(?i)\b(bearer|basic|dpop)\s+[A-Za-z0-9._~+/=-]{8,}")


class BadEncodingError(ValueError):
    """The body is not in the Content-Encoding it names, or in one we do not know."""


class Inflater:
    """One response body's Content-Encoding undone piece by piece, at most 64 KiB at a time."""

    def __init__(self, content_encoding: str) -> None:
        """Raises BadEncodingError for anything but one of gzip and deflate, or nothing."""
        coding = content_encoding.strip().lower()
        if coding not in ("", "identity", "gzip", "x-gzip", "deflate"):
            raise BadEncodingError(f"its Content-Encoding {content_encoding[:40]!r} was not asked for")
        self._coding = coding
        self._inflate = self._fresh() if coding not in ("", "identity") else None
        self._first = True

    def _fresh(self, *, raw: bool = False) -> Any:
        if self._coding == "deflate":
            return zlib.decompressobj(-zlib.MAX_WBITS if raw else zlib.MAX_WBITS)
        return zlib.decompressobj(16 + zlib.MAX_WBITS)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Raises BadEncodingError. Pieces are made only as they are taken, so the taker can stop at its cap."""
        if self._inflate is None:
            yield data
            return
        while data:
            try:
                piece = self._inflate.decompress(data, _STEP)
            except zlib.error:
                if not (self._first and self._coding == "deflate"):
                    raise BadEncodingError(f"it is not in the {self._coding} encoding it names") from None
                self._inflate = self._fresh(raw=True)  # half of all servers mean raw deflate by "deflate"
                self._first = False
                continue
            self._first = False
            data = self._inflate.unconsumed_tail
            if self._inflate.eof:
                data = self._inflate.unused_data
                if data:
                    self._inflate = self._fresh()  # gzip may have several members
            if piece:
                yield piece

    def finish(self) -> None:
        """Raises BadEncodingError when the body ended in the middle."""
        if self._inflate is not None and not self._inflate.eof and not self._first:
            raise BadEncodingError("it ended in the middle of its compressed data")


_SHALLOW = 100  # brackets: what has no more is not nested too deep for any parser


def strict_json(body: bytes) -> Any:
    """The JSON value of this body. Raises ValueError as `strict_json_text` does."""
    return strict_json_text(body)[0]


def strict_json_text(body: bytes) -> tuple[Any, bytes]:
    """The JSON value of this body, and its shortest text.

    Raises ValueError saying why it is none we pass on: invalid, a key twice, NaN or Infinity, a number beyond 64 bits,
    nesting too deep.

    JSON that is written as we write it is read once: orjson keeps the last of two equal keys, rounds large integers and
    writes infinity as null, so what it writes again would differ. Other text is parsed twice, because neither parser
    refuses everything: jiter reads 1e400 as infinity.
    """
    try:
        value = orjson.loads(body)
        text = orjson.dumps(value)
        if text != body or body.count(b"[") + body.count(b"{") > _SHALLOW:
            value = jiter.from_json(body, allow_inf_nan=False, catch_duplicate_keys=True)
            text = orjson.dumps(value)
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(_plain(str(error))[:120]) from None
    return value, text


LARGE_BYTES = 262_144  # of an answer: in one that is larger, lists are cut
_LISTS = ("tools", "resources", "resourceTemplates", "prompts")


def strict_json_cut(body: bytes, most: int) -> tuple[Any, bool]:
    """As `strict_json`, of a JSON-RPC message: of an MCP list in it `most` entries and one more, by which it can be
    seen that there were others. And whether it was cut.

    A hundred thousand entries would hold everybody up, here and in every further layer. So a long list is read from its
    beginning until there are enough, and what follows is not even looked at, unless the id of the answer is there.
    """
    if len(body) <= LARGE_BYTES:
        return strict_json(body), False
    size = LARGE_BYTES
    # Up to the end of an object, which is not in the middle of an escape.
    while size < len(body) and (end := body.rfind(b"}", 0, size) + 1):
        try:
            message = jiter.from_json(body[:end], allow_inf_nan=False, catch_duplicate_keys=True, partial_mode=True)
            lists = _lists(message)
            if not lists or "id" not in message:
                break
            if _cut(lists, most):
                if strict_json(orjson.dumps(message)) != message:  # what is not finite is written as null
                    raise ValueError("number out of range")
                return message, True
        except (ValueError, TypeError) as error:
            raise ValueError(_plain(str(error))[:120]) from None
        size *= 4
    message = strict_json(body)
    return message, _cut(_lists(message), most)


def _lists(message: Any) -> list[list[Any]]:
    """The MCP lists in the result of this message."""
    given: Any = cast("Mapping[str, Any]", message).get("result") if isinstance(message, Mapping) else None
    result = cast("dict[str, Any]", given) if isinstance(given, dict) else {}
    return [cast("list[Any]", result[name]) for name in _LISTS if isinstance(result.get(name), list)]


def _cut(lists: list[list[Any]], most: int) -> bool:
    long = [entries for entries in lists if len(entries) > most + 1]
    for entries in long:
        del entries[most + 1 :]
    return bool(long)


@lru_cache(maxsize=256)
def media_type(header: str) -> tuple[str, str]:
    """(type/subtype, charset) in lower case; charset "" when not given. Servers say one of a few."""
    kind, _, parameters = header.partition(";")
    match = re.search(r"""charset\s*=\s*"?([A-Za-z0-9_-]+)""", parameters, re.IGNORECASE)
    return kind.strip().lower(), match[1].lower() if match else ""


@lru_cache(maxsize=256)
def is_json(kind: str) -> bool:
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


def excerpt(body: bytes, content_type: str, masked: Iterable[str] = ()) -> str:
    """A short text a person may read from an error body: its own message where it has one; "" when it is not text.

    Control, invisible and direction-changing characters are gone; `masked` (our own secrets) and anything that looks
    like a credential are replaced. At most 300 characters.
    """
    kind, _ = media_type(content_type)
    text = ""
    if is_json(kind):
        text = _message_in(body) or body[: _EXCERPT * 8].decode("utf-8", "replace")
    elif kind == "text/plain":
        text = body[: _EXCERPT * 8].decode("utf-8", "replace")
    return short(text, masked)


def short(text: str, masked: Iterable[str] = (), limit: int = _EXCERPT) -> str:
    """Foreign text for one line of ours: printable, without secrets, at most `limit` characters."""
    for secret in masked:
        text = text.replace(secret, "[redacted]")
    text = _BEARER.sub(r"\1 [redacted]", _plain(text))
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _plain(text: str) -> str:
    kept = (" " if unicodedata.category(sign).startswith(("C", "Z")) else sign for sign in text)
    return " ".join("".join(kept).split())


def _message_in(body: bytes) -> str:
    """The sentence in the usual places of a JSON error (RFC 9457 and habit)."""
    try:
        value: Any = jiter.from_json(body)
    except ValueError:
        return ""
    for _ in range(2):
        if isinstance(value, str):
            return value
        if not isinstance(value, Mapping):
            return ""
        found = cast("Mapping[str, Any]", value)
        value = next((found[key] for key in ("detail", "message", "error", "title") if found.get(key)), None)
    return value if isinstance(value, str) else ""


def storable(value: Any, *, depth: int = 64) -> str:
    """Why a JSON value that another parser read is none we pass on; "" when it is one.

    The MCP SDK's parser lets NaN and Infinity through, which then would become null on the way out.
    """
    try:
        text = orjson.dumps(value)
    except TypeError as error:
        return _plain(str(error))[:120]
    if b"null" not in text and text.count(b"[") + text.count(b"{") <= depth:
        return ""  # what is not finite is written as null
    level: list[Any] = [value]
    for _ in range(depth):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, Mapping):
                inner.extend(cast("Mapping[str, Any]", item).values())
            elif isinstance(item, list):
                inner.extend(cast("list[Any]", item))
            elif isinstance(item, float) and not math.isfinite(item):
                return "it has a number that is not finite"
        if not inner:
            return ""
        level = inner
    return f"it is nested deeper than {depth}"
