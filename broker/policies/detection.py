"""Secrets and personal data in texts, by their form: a table of patterns, and what stands in their place.

A pattern is for a form that hardly anything else has. It is linear: no repetition inside of a repetition, each bounded.
Whoever needs certainty names the field (`record: fields:`); this catches what nobody thought of.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

SHORTEST = 9  # characters: nothing of the table is shorter

_SECRETS: Mapping[str, str] = {
    "private_key": r"-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----[A-Za-z0-9+/=\s]{0,8192}(?:-----END [A-Z ]{0,20}KEY-----)?",
    "jwt": r"\beyJ[A-Za-z0-9_-]{6,4096}\.eyJ[A-Za-z0-9_-]{6,4096}(?:\.[A-Za-z0-9_-]{0,2048})?",
    "api_key": r"\b(?:brk_[0-9a-z]{6,64}_|sk-|sk_live_|rk_live_|xox[abprs]-|gh[pousr]_|glpat-|AKIA|ASIA|AIza)"
    r"[A-Za-z0-9_-]{12,256}",
    "authorization": r"\b(?:[Bb]earer|[Bb]asic) [A-Za-z0-9+/_.~-]{12,4096}={0,2}",
    "url_password": r"(?<=://)[^\s/:@]{1,128}:[^\s/@]{1,256}(?=@)",
}
_PERSONAL: Mapping[str, str] = {
    "email": r"\b[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,8}\b",
    "iban": r"\b[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,3})?\b",
    "card": r"\b[0-9](?:[ -]?[0-9]){12,18}\b",
    "us_ssn": r"\b[0-9]{3}-[0-9]{2}-[0-9]{4}\b",
    "phone": r"(?<![\w+])\+[0-9]{1,3}[ -]?(?:\([0-9]{1,4}\)[ -]?)?[0-9](?:[ -]?[0-9]){5,12}\b",
}
PATTERNS: Mapping[str, str] = {**_SECRETS, **_PERSONAL}

# What a text of any of these forms has for certain, by a character that it has with it; most texts have none of it, and
# looking for it is quick.
_SIGNS: Mapping[str, tuple[str, ...]] = {
    "": ("@", "+", "eyJ", "AKIA", "ASIA", "AIza", "earer ", "asic "),
    "_": ("brk_", "k_live_", "ghp_", "gho_", "ghu_", "ghs_", "ghr_"),
    "-": ("sk-", "xox", "glpat-", "-----BEGIN"),
}
_COUNTING = bytes.maketrans(b"123456789 -", b"00000000000")  # what numbers are written with
_NUMBER = b"0" * 11  # card, us_ssn; then looked at more closely, because a number between two spaces is as long
_LONG_NUMBER = re.compile(rb"[0-9][0-9 -]{9,}[0-9]")
_SPELLING = bytes.maketrans(b"BCDEFGHIJKLMNOPQRSTUVWXYZ123456789", b"A" * 25 + b"0" * 9)
_COUNTRY = b"AA00"  # iban

_ANY = re.compile("|".join(f"(?P<{name}>{pattern})" for name, pattern in PATTERNS.items()))


def _is_card(text: str) -> bool:
    """Luhn's check: nine of ten numbers of that length are no card's."""
    digits = [int(sign) for sign in text if sign.isdigit()]
    doubled = [digit * 2 - 9 * (digit > 4) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _is_iban(text: str) -> bool:
    """ISO 7064 mod 97-10."""
    plain = text.replace(" ", "")
    return int("".join(str(int(sign, 36)) for sign in plain[4:] + plain[:4])) % 97 == 1


_CHECKS: Mapping[str, Callable[[str], bool]] = {"card": _is_card, "iban": _is_iban}


def scrubbed(text: str) -> str:
    """The text with `[redacted: NAME]` in the place of everything of such a form."""
    return _ANY.sub(_mark, text) if len(text) >= SHORTEST and is_suspect(text) else text


def is_suspect(text: str) -> bool:
    """Whether anything of the table can be in this text; False only when nothing is."""
    for character, signs in _SIGNS.items():
        if character in text:
            for sign in signs:
                if sign in text:
                    return True
    plain = text.encode("utf-8", "surrogatepass")
    if plain.translate(_COUNTING).find(_NUMBER) >= 0 and _LONG_NUMBER.search(plain):
        return True
    return plain.translate(_SPELLING).find(_COUNTRY) >= 0


def _mark(match: re.Match[str]) -> str:
    name = match.lastgroup or ""
    check = _CHECKS.get(name)
    return match[0] if check is not None and not check(match[0]) else f"[redacted: {name}]"
