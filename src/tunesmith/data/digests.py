"""Texts told apart by 16 bytes each: which are equal, and an order that has nothing to do with where they stand.

    found = digests(plain(c.answer) for c in rows)       # [rows, 2], uint64
    first_equal(found)                                   # [0, 1, 0, 3]: for each the place of the first equal one
    ranked(found)                                        # places in the order of the digests

Two million texts in a Python dictionary take half a gigabyte, their digests 32 MB. That two of a billion different texts have one digest
has a chance of less than 1e-20 (BLAKE2b, 128 bits).
"""

from collections.abc import Iterable
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

Digests = NDArray[np.uint64]
Places = NDArray[np.int64]


def digest(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def digests(texts: Iterable[str]) -> Digests:
    """Of each text two numbers; in their order those are, first number first, as the bytes would be."""
    found = bytearray()
    for text in texts:
        found += digest(text)
    return as_numbers(found)


def as_numbers(found: bytes | bytearray) -> Digests:
    """Digests one after the other as [digests, 2]."""
    return np.frombuffer(found, ">u8").astype(np.uint64).reshape(-1, 2)


def ranked(found: Digests) -> Places:
    """Places in the order of the digests; of equal ones the earlier first."""
    return np.lexsort((found[:, 1], found[:, 0]))


def first_equal(found: Digests) -> Places:
    """For each digest the place of the first that equals it."""
    order = ranked(found)
    in_order = found[order]
    begins = np.ones(len(order), bool)
    begins[1:] = (in_order[1:] != in_order[:-1]).any(axis=1)
    first = np.empty(len(order), np.int64)
    first[order] = order[begins][np.cumsum(begins) - 1]
    return first


def where_found(wanted: Digests, among: Digests) -> Places:
    """For each wanted digest the place of the first equal one among the others; -1: there is none."""
    if not len(among):
        return np.full(len(wanted), -1, np.int64)
    first = first_equal(np.concatenate([among, wanted]))[len(among) :]
    return np.where(first < len(among), first, -1)
