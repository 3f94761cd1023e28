"""DNA as letters and as one-hot rows, in the order ACGT."""

from __future__ import annotations

from typing import Literal

import numpy as np

BASES = "ACGT"
Unknown = Literal["zeros", "quarters"]
Ambiguous = Literal["unknown", "shares", "refuse"]

# The letters of nucleic acids (IUPAC 1984), and the bases that each may stand for. U of RNA is read as T.
MEANINGS = {letter: letter for letter in BASES} | {
    "U": "T",
    "N": BASES,
    "R": "AG",
    "Y": "CT",
    "S": "CG",
    "W": "AT",
    "K": "GT",
    "M": "AC",
    "B": "CGT",
    "D": "AGT",
    "H": "ACT",
    "V": "ACG",
}


def _table() -> np.ndarray:
    """The share of each base in each ASCII letter, `(256, 4)`. Lower case (soft-masked) counts as upper case."""
    table = np.zeros((256, len(BASES)), np.float32)
    for letter, meaning in MEANINGS.items():
        for each in (letter, letter.lower()):
            table[ord(each), [BASES.index(base) for base in meaning]] = 1 / len(meaning)
    return table


SHARES = _table()
IS_BASE = (SHARES == 1).any(1)
IS_UNKNOWN = np.isin(np.arange(256), list(b"Nn"))
IS_AMBIGUOUS = (SHARES != 0).any(1) & ~IS_BASE & ~IS_UNKNOWN
IS_LETTER = IS_BASE | IS_UNKNOWN | IS_AMBIGUOUS
_ONE_HOT = np.where(IS_BASE[:, None], SHARES, np.float32(0))
_UPPER_LETTERS = np.frombuffer(b"ACGTN", np.uint8)
_COMPLEMENT = np.frombuffer(
    bytes.maketrans(b"ACGTUacgtuRYSWKMBDHVryswkmbdhv", b"TGCAAtgcaaYRSWMKVHDByrswmkvhdb"), np.uint8
)


def one_hot_of(letters: np.ndarray, unknown: Unknown = "zeros", ambiguous: Ambiguous = "unknown") -> np.ndarray:
    """ASCII letters `(..., L)` uint8 as rows `(..., L, 4)` float32, one-hot where they are bases.

    Args:
        letters: as a file has them, in either case.
        unknown: N as zeros, or as 1/4 of each base.
        ambiguous: letters for one of several bases (R for A or G) as N, or as equal shares of those. (Whoever refuses
            them has done so before.)
    """
    if unknown == "zeros" and ambiguous != "shares":
        return _ONE_HOT[letters]
    table = _ONE_HOT.copy()
    as_shares = IS_UNKNOWN if unknown == "quarters" else np.zeros_like(IS_UNKNOWN)
    if ambiguous == "shares":
        as_shares = as_shares | IS_AMBIGUOUS
    elif unknown == "quarters":
        table[IS_AMBIGUOUS] = 1 / len(BASES)
    table[as_shares] = SHARES[as_shares]
    return table[letters]


def letters_of(one_hot: np.ndarray) -> np.ndarray:
    """The ASCII letters `(..., L)` uint8 of rows `(..., L, 4)`: N where a row isn't one-hot."""
    is_one = ((one_hot == 1).sum(-1) == 1) & ((one_hot == 0).sum(-1) == len(BASES) - 1)
    return _UPPER_LETTERS[np.where(is_one, one_hot.argmax(-1), len(BASES))]


def reverse_complement(letters: np.ndarray) -> np.ndarray:
    """Of ASCII letters `(..., L)`: what the other strand reads."""
    return _COMPLEMENT[letters[..., ::-1]]
