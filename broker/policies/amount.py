"""What a call may cost: money and tokens as whole numbers of the smallest unit, exact or refused.

Money is counted in millionths of its currency, made from decimals and never from rounding; tokens are counted. What is
finer, negative, zero, not a number or absurdly large is refused: at load for a constant, by a denial of the call for a
computed amount. What a backend *reports* has happened and cannot be refused: see `reported`.
"""

from __future__ import annotations

from decimal import ROUND_CEILING, Decimal, InvalidOperation
from typing import Annotated

from pydantic import BeforeValidator, WithJsonSchema

from broker.policies.expression import Expression

TOKENS = "tokens"
MAX_AMOUNT = 10**15  # a billion of any currency in millionths; as many tokens
_PLACES = 6


def micro(written: object) -> int:
    """Millionths, 1 to 10^15, of a whole number, a float as it is written, or the text of a decimal.

    Raises ValueError saying what is wrong: not a number, not finite, not above zero, finer than a millionth, too large.
    """
    amount = _decimal(written, 'expected a decimal such as 100.00 or "0.02"')
    if not amount.is_finite() or amount <= 0:
        raise ValueError("an amount of money is finite and above zero")
    if amount.adjusted() > 9:
        raise ValueError("an amount of money is at most 1000000000")
    exact = amount.scaleb(_PLACES)
    if exact != exact.to_integral_value():
        raise ValueError("an amount of money has at most six decimals")
    if not 1 <= int(exact) <= MAX_AMOUNT:
        raise ValueError("an amount of money is at most 1000000000")
    return int(exact)


def whole(written: object) -> int:
    """A number of tokens, 1 to 10^15. Raises ValueError as `micro` does."""
    amount = _decimal(written, "expected a whole number of tokens")
    if not amount.is_finite() or amount < 1 or amount.adjusted() > 15:
        raise ValueError("a number of tokens is between 1 and 1000000000000000")
    if amount != amount.to_integral_value() or amount > MAX_AMOUNT:
        raise ValueError("a number of tokens is whole, at most 1000000000000000")
    return int(amount)


def counted(written: object, unit: str) -> int:
    """An amount in the smallest part of a unit: `tokens`, or a currency's millionths. Raises ValueError."""
    return whole(written) if unit == TOKENS else micro(written)


def reported(written: object, unit: str) -> int | None:
    """What a backend says a call has used, 0 to 10^15, rounded up; None when it is no such number (text that is none,
    negative, not finite), and then the estimate stands.
    """
    try:
        amount = _decimal(written, "")
    except ValueError:
        return None
    if not amount.is_finite() or amount < 0:
        return None
    if amount.adjusted() > 15:
        return MAX_AMOUNT
    parts = amount if unit == TOKENS else amount.scaleb(_PLACES)
    return min(MAX_AMOUNT, int(parts.to_integral_value(ROUND_CEILING)))


def unit_of(name: str) -> str:
    """How the store names what is written as `EUR` or `tokens`."""
    return name if name == TOKENS else f"{name.lower()}_micro"


def _decimal(written: object, wrong: str) -> Decimal:
    if isinstance(written, bool) or not isinstance(written, (int, float, str)):
        raise ValueError(wrong)  # noqa: TRY004 – the error pydantic collects
    try:
        return Decimal(written if isinstance(written, int) else str(written).strip())
    except InvalidOperation:
        raise ValueError(wrong) from None


def is_decimal(text: str) -> bool:
    try:
        Decimal(text.strip())
    except InvalidOperation:
        return False
    return True


def _money(written: object) -> object:
    micro(written)
    return str(written)


def _tokens(written: object) -> object:
    return whole(written)


def _amount(written: object, unit: str) -> object:
    """A constant, or a CEL expression over the call; compiled here so that its faults are reported at its place."""
    if isinstance(written, str) and not is_decimal(written):
        Expression.compile(written, result="amount")
        return written
    counted(written, unit)
    return str(written)


_NUMBER = WithJsonSchema({"type": ["string", "number"]})
Money = Annotated[str, BeforeValidator(_money), _NUMBER]
Tokens = Annotated[int, BeforeValidator(_tokens), WithJsonSchema({"type": "integer", "minimum": 1})]
MoneyAmount = Annotated[str, BeforeValidator(lambda written: _amount(written, "")), _NUMBER]
TokensAmount = Annotated[str, BeforeValidator(lambda written: _amount(written, TOKENS)), _NUMBER]
