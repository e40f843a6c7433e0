"""Sentences as policies see them: the bytes of UTF-8."""

from __future__ import annotations

import numpy as np

from policies.spec import Array, ContractError


def sentence_bytes(sentence: str, length: int) -> Array:
    """Encode a sentence as ``(length,)`` uint8: UTF-8, padded with 0.

    It is written as policies learn sentences: single spaces, a capital first, a full stop last.

    Raises:
        ContractError: It is too long, or has a byte that means padding.
    """
    said = " ".join(sentence.split())
    said = said[:1].upper() + said[1:] + ("." if said and said[-1] not in ".!?" else "")
    encoded = said.encode()
    if len(encoded) > length or 0 in encoded:
        raise ContractError(
            f"the instruction {sentence!r} has {len(encoded)} bytes; at most {length} fit, none of them 0: "
            "say it otherwise"
        )
    return np.frombuffer(encoded.ljust(length, b"\0"), np.uint8).copy()
