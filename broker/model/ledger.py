"""Where the ledger's chains stand, as a checkpoint names it. Chains are in the order in which they began."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Head:
    """The last entry of a chain. hash: 64 lower-case hex digits."""

    chain: str
    seq: int
    hash: str


@dataclass(frozen=True, slots=True)
class Heads:
    """heads: every open chain, and those that ended last. rest: SHA-256 (hex) over the lines `<chain> <seq> <hash>`,
    each ended by a newline, of all the other chains; so a checkpoint stays small however many there have been.
    """

    chains: int
    rest: str
    heads: tuple[Head, ...]
